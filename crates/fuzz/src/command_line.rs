//! Secrets in command lines.

use profilemate_redact::{command_line, text};

/// It stands in a command; nothing else makes it.
const SECRET: &str = "Zq9xVdJw7";

/// Input: where the secret stands, in which form, and the words of a command, separated by NUL.
pub fn run(mut data: &[u8]) {
    let place = usize::from(crate::byte(&mut data));
    let form = crate::byte(&mut data);
    let found = String::from_utf8_lossy(data);
    let mut command: Vec<String> = found.split('\0').map(str::to_owned).collect();
    let secret = match form % 8 {
        0 => vec!["--api-key".to_owned(), SECRET.to_owned()],
        1 => vec![format!("--api-key={SECRET}")],
        2 => vec![format!("VLLM_API_KEY={SECRET}")],
        3 => vec![format!("--config={{\"a\": {{\"api_key\": \"{SECRET}\"}}}}")],
        4 => vec![format!("https://user:{SECRET}@host/x")],
        5 => vec!["--hf-token".to_owned(), SECRET.to_owned(), SECRET.to_owned()],
        6 => vec![format!("https://host/?a=1&token={SECRET}")],
        _ => vec![format!("HF_TOKEN={SECRET} vllm serve --api-key {SECRET}")],
    };
    if !found.contains(SECRET) {
        let at = place % (command.len() + 1);
        command.splice(at..at, secret);
    }
    let length: usize = command.iter().map(String::len).sum();
    crate::memory::within(4096 + 64 * (length + command.len()), || {
        let shown = command_line(command.iter().map(String::as_str));
        assert!(found.contains(SECRET) || !shown.contains(SECRET));
        let shown = text(&found);
        assert_eq!(text(&shown), shown, "nothing is left to hide");
    });
}
