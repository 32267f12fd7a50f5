//! What people write on a command line of ours, `--fail-on` above all, and names that logs tell: of spans, of batches, of
//! metrics.

use profilemate_analysis::compare::condition::Condition;
use profilemate_analysis::cuda_graphs::Descriptor;
use profilemate_output::text::{json, visible};
use profilemate_session::Name;

/// Input: a text.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    crate::memory::within(1 << 20, || match Condition::parse(&text) {
        Ok(condition) => {
            assert!(condition.threshold.is_finite());
            assert_eq!(
                Condition::parse(&condition.to_string()).as_ref(),
                Ok(&condition),
                "it is read as it is shown"
            );
        }
        Err(error) => {
            assert!((1..=text.chars().count() + 1).contains(&error.position), "{error}");
            assert!(!error.expected.is_empty());
        }
    });
    let name = Name::parse(&text);
    assert!(name == Name::Other || name.text() == text);
    let descriptor = Descriptor::parse(&text);
    assert!(text.starts_with(descriptor.mode) && !descriptor.mode.contains(' '));
    // Whatever it is, it is seen and does nothing.
    let shown = visible(&text);
    assert_eq!(visible(&shown), shown);
    let document = serde_json::json!({ &*text: [text] });
    let shown = json(&document);
    assert!(shown.split('\n').all(|line| visible(line) == line));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).ok(), Some(document));
}
