//! The workspace's text files.

use std::path::{Path, PathBuf};

/// A text file, by its path from the workspace's root.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn has_extension(&self, extensions: &[&str]) -> bool {
        let extension = Path::new(&self.path).extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension))
    }

    /// Lines of code with their numbers: without comments, and without the tests at a file's end.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        let product = numbered.take_while(|(_, line)| line.trim() != "#[cfg(test)]");
        product.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").to_owned()
}

/// Everything but the version control's own files, build results and what is not text.
pub(crate) fn workspace() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(&root(), "", &mut sources);
    assert!(sources.len() > 50, "this is not the workspace");
    sources
}

fn collect(folder: &Path, prefix: &str, sources: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).expect("the workspace is readable") {
        let entry = entry.expect("the workspace is readable");
        let name = entry.file_name().into_string().expect("names are UTF-8");
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().expect("the workspace is readable");
        if kind.is_dir() && ![".git", "target", "__pycache__", ".venv"].contains(&name.as_str()) {
            collect(&entry.path(), &format!("{path}/"), sources);
        } else if kind.is_file()
            && let Ok(text) = std::fs::read_to_string(entry.path())
        {
            sources.push(Source { path, text });
        }
    }
}

#[test]
fn comments_and_tests_are_no_code() {
    let text = "//! lapin\nuse a;\n    // lapin\n#[cfg(test)]\nmod tests {\n    use lapin;\n}\n".to_owned();
    let source = Source { path: "a.rs".to_owned(), text };
    assert_eq!(source.code().collect::<Vec<_>>(), [(2, "use a;")]);
}
