//! The checklist as it is printed.

use crate::exit::Exit;

/// Prints findings as they come; knows whether one has to be fixed.
#[derive(Debug, Default)]
pub(super) struct Report {
    has_bad: bool,
}

impl Report {
    /// All is well.
    pub(super) fn good(&mut self, what: &str, detail: &str) {
        print('✓', what, detail);
    }

    /// Worth a look.
    pub(super) fn warn(&mut self, what: &str, detail: &str, fix: &str) {
        print('!', what, detail);
        print(' ', "", fix);
    }

    /// Has to be fixed.
    pub(super) fn bad(&mut self, what: &str, detail: &str, fix: &str) {
        self.has_bad = true;
        print('✗', what, detail);
        print(' ', "", &format!("fix: {fix}"));
    }

    /// What the process ends with.
    pub(super) fn exit(&self) -> Exit {
        if self.has_bad { Exit::Failed } else { Exit::Success }
    }
}

fn print(mark: char, what: &str, detail: &str) {
    // A closed pipe ends nothing here: the exit code is the result.
    let _ = crate::output::print(&format!("{mark} {what:<14} {detail}"));
}
