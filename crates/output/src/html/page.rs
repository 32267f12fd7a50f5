//! The page's HTML. Data goes in as JSON in which nothing can end its element; the script puts all of it on the page as text.
//! The page may load nothing, and run nothing but this script: its policy names the hashes of both.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::model::Page;

const LIBRARY: &str = include_str!("vendor/uplot/uPlot.iife.min.js");
const LIBRARY_STYLE: &str = include_str!("vendor/uplot/uPlot.min.css");
const LIBRARY_LICENSE: &str = include_str!("vendor/uplot/LICENSE");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");

/// JSON as it may stand in a script element: `<`, `>`, `&` and what ends a line for JavaScript are escaped.
pub(super) fn json_in_html(json: &str) -> String {
    let mut text = String::with_capacity(json.len() + 64);
    for letter in json.chars() {
        match letter {
            '<' => text.push_str("\\u003c"),
            '>' => text.push_str("\\u003e"),
            '&' => text.push_str("\\u0026"),
            '\u{2028}' => text.push_str("\\u2028"),
            '\u{2029}' => text.push_str("\\u2029"),
            letter => text.push(letter),
        }
    }
    text
}

/// Text between tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

/// The page as HTML.
pub(super) fn render(page: &Page) -> String {
    let json = serde_json::to_string(page).unwrap_or_else(|_| "null".to_owned());
    let data = json_in_html(&json);
    let title = escaped(page.title.as_str());
    let notice = LIBRARY_LICENSE.trim();
    let script = format!("/*\nuPlot, which draws the charts:\n\n{notice}\n*/\n{LIBRARY}\n{SCRIPT}");
    let style = format!("{LIBRARY_STYLE}\n{STYLE}");
    let (script_hash, style_hash) = (hash(&script), hash(&style));
    format!(
        "<!DOCTYPE html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'sha256-{script_hash}'; \
         style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>{title}</title>\n\
         <style>{style}</style>\n\
         </head>\n\
         <body>\n\
         <noscript><p>This page draws itself with a script of its own, which loads nothing: allow it to run, or read \
         the tables beside the page.</p></noscript>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n\
         <script>{script}</script>\n\
         </body>\n\
         </html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_parts_of_the_page_cannot_end_their_elements() {
        for part in [LIBRARY, SCRIPT, LIBRARY_LICENSE] {
            assert!(!part.to_lowercase().contains("</script") && !part.contains("<!--"));
        }
        for part in [LIBRARY_STYLE, STYLE] {
            assert!(!part.to_lowercase().contains("</style"));
        }
        assert!(!LIBRARY_LICENSE.contains("*/"));
    }

    proptest! {
        #[test]
        fn data_reads_back_and_ends_nothing(text: String, key: String) {
            let value = serde_json::json!({ key: format!("</script><!--{text}\u{2028}&") });
            let shown = json_in_html(&value.to_string());
            let is_whole = !shown.contains(['<', '>', '&', '\u{2028}', '\u{2029}']);
            prop_assert!(is_whole);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
