//! Tables of the documentation that tests make, and hold against what is written there.

use std::path::Path;

const MARKS: [&str; 2] = ["<!-- made by tests: begin -->\n", "<!-- made by tests: end -->"];

/// A page with one such table.
#[derive(Clone, Copy)]
pub enum Page {
    Spiffe,
    Oauth,
    Refusals,
    Smuggling,
    Gateway,
    Masking,
}

/// Compares, or writes anew if `POPGATE_TEST_WRITE_DOCS` is set. The first row is the heading.
pub fn compare(page: Page, table: &[[String; 4]]) {
    let file = match page {
        Page::Spiffe => "docs/integrations/spiffe.md",
        Page::Oauth => "docs/integrations/oauth.md",
        Page::Refusals => "docs/refusals.md",
        Page::Gateway => "docs/integrations/gateway.md",
        Page::Masking => "docs/masking.md",
        Page::Smuggling => "docs/smuggling.md",
    };
    let mut text = String::new();
    for (i, row) in table.iter().enumerate() {
        text += &format!("| {} |\n", row.join(" | "));
        if i == 0 {
            text += "|---|---|---|---|\n";
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let page = std::fs::read_to_string(&path).expect("reads");
    let (before, rest) = page.split_once(MARKS[0]).expect("the table has its marks");
    let (there, after) = rest.split_once(MARKS[1]).expect("the table has its marks");
    if std::env::var("POPGATE_TEST_WRITE_DOCS").is_ok() {
        std::fs::write(&path, format!("{before}{}{text}{}{after}", MARKS[0], MARKS[1])).expect("writes");
    } else {
        assert_eq!(there, text, "run with POPGATE_TEST_WRITE_DOCS=1 to write the table of {file} anew");
    }
}
