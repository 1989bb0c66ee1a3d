//! Rules over one file.

use crate::source::Source;

/// Words that product code inside some places may not use, except in a few.
#[derive(Clone, Copy)]
pub(crate) struct Ban {
    pub(crate) words: &'static [&'static str],
    /// Beginnings of paths.
    pub(crate) inside: &'static [&'static str],
    /// Beginnings of paths.
    pub(crate) except: &'static [&'static str],
    pub(crate) why: &'static str,
}

pub(crate) fn banned(ban: &Ban, source: &Source) -> Vec<String> {
    let lies_in = |places: &[&str]| places.iter().any(|place| source.path.starts_with(place));
    if !lies_in(ban.inside) || lies_in(ban.except) || is_test(&source.path) {
        return Vec::new();
    }
    let uses = |line: &str| ban.words.iter().find(|word| line.contains(**word)).copied();
    source
        .code()
        .filter_map(|(number, line)| uses(line).map(|word| (number, word)))
        .map(|(number, word)| format!("{}:{number}: `{word}`: {}", source.path, ban.why))
        .collect()
}

/// Tests in files of their own, beside the code or in a `tests` folder.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

pub(crate) fn lines_above(source: &Source, limit: usize) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > limit).then(|| format!("{}: {lines} lines, the limit is {limit}: split it", source.path))
}

/// Folders of the machines on which this is developed, as absolute paths; put together so that this file has none.
fn machine_folders() -> [String; 2] {
    ["work", "root"].map(|folder| format!("/{folder}"))
}

pub(crate) fn machine_paths(source: &Source) -> Vec<String> {
    let folders = machine_folders();
    let is_path = |line: &str, folder: &str| {
        line.match_indices(folder).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + folder.len()..].chars().next();
            let begins = before.is_none_or(|c| !c.is_alphanumeric() && !".-_/}*)$".contains(c));
            begins && after.is_none_or(|c| !c.is_alphanumeric() && !"-_.".contains(c))
        })
    };
    complaints(
        source,
        |line| folders.iter().find(|folder| is_path(line, folder)).cloned(),
        "a path of one machine",
    )
}

/// Names that no public host has: a registry, a mirror or a proxy of somebody's own network.
const PRIVATE_DOMAINS: [&str; 6] = [".internal", ".local", ".lan", ".corp", ".intranet", ".home.arpa"];

pub(crate) fn private_hosts(source: &Source) -> Vec<String> {
    let host = |line: &str| {
        let hosts = line.split("://").skip(1).map(|rest| {
            let authority = rest.split(['/', '"', '\'', '`', ' ', ')', '>', '?']).next().unwrap_or_default();
            let host = authority.rsplit('@').next().unwrap_or_default();
            host.split(':').next().unwrap_or_default().to_owned()
        });
        let mut hosts = hosts.filter(|host| {
            let is_private_address = host.starts_with("10.") || host.starts_with("192.168.");
            is_private_address || PRIVATE_DOMAINS.iter().any(|domain| host.ends_with(domain))
        });
        hosts.next()
    };
    complaints(source, host, "a host of one network")
}

fn complaints(source: &Source, find: impl Fn(&str) -> Option<String>, why: &str) -> Vec<String> {
    let lines = source.text.lines().enumerate();
    lines
        .filter_map(|(index, line)| {
            find(line).map(|found| format!("{}:{}: `{found}`: {why}", source.path, index + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BANS;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    fn complaints_of(path: &str, text: &str) -> Vec<String> {
        BANS.iter().flat_map(|ban| banned(ban, &source(path, text))).collect()
    }

    /// Each rule finds the line that breaks it, and only outside the places that may.
    #[test]
    fn broken_rules_are_found() {
        for (path, line, allowed) in [
            ("worker/src/status.rs", "use lapin::Channel;", "common/src/amqp/connection.rs"),
            ("worker/src/pipeline.rs", "let s = ort::init();", "worker/src/model/onnx/strings.rs"),
            ("producer/src/client.rs", "use axum::Router;", "producer/gateway/src/main.rs"),
            (
                "worker/src/outbound/settle.rs",
                "channel.basic_publish(",
                "common/src/amqp/publisher/session.rs",
            ),
            (
                "common/src/directory.rs",
                "self.acker.ack(BasicAckOptions::default())",
                "common/src/amqp/ticket.rs",
            ),
            ("worker/src/inbound/intake.rs", "delivery.ticket.ack().await", "worker/src/outbound/settle.rs"),
            ("worker/src/pipeline.rs", "tokio::spawn(async {})", "common/src/lifecycle.rs"),
            ("common/src/amqp/consumer.rs", "channel.basic_reject(", "tests/src/foreign.rs"),
            ("common/src/amqp/topology.rs", "(\"x-queue-mode\", text(\"lazy\"))", "tests/src/foreign.rs"),
            ("common/src/protocol/decode.rs", "use crate::amqp::message;", "worker/src/inbound/intake.rs"),
            (
                "worker/src/schedule/scheduler.rs",
                "let now = Instant::now();",
                "worker/src/schedule/pickup.rs",
            ),
            ("worker/src/schedule/lane.rs", "tokio::time::sleep(a).await;", "worker/src/status.rs"),
            ("worker/src/pipeline.rs", "mpsc::unbounded_channel()", "tests/src/stack.rs"),
            ("producer/cli/src/infer.rs", "std::sync::mpsc::channel()", "xtask/src/up.rs"),
        ] {
            assert!(!complaints_of(path, line).is_empty(), "{path} may not say `{line}`");
            assert_eq!(complaints_of(allowed, line), [""; 0], "{allowed} may say `{line}`");
        }
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(lines_above(&source("a.rs", "a\nb\n"), 2), None);
        assert!(lines_above(&source("a.rs", "a\nb\nc\n"), 2).unwrap().contains("3 lines"));
    }

    #[test]
    fn machine_paths_are_found() {
        let [work, root] = machine_folders();
        for bad in [
            format!("{work}/main"),
            format!("see `{root}`"),
            format!("A={work}"),
            format!("\"{root}/.cache\""),
        ] {
            assert_eq!(machine_paths(&source("a.md", &bad)).len(), 1, "{bad}");
        }
        for good in [
            format!("compose{work}er.toml"),
            format!("..{work}"),
            format!("millrace{work}er"),
            format!("{work}er/src"),
        ] {
            assert_eq!(machine_paths(&source("a.md", &good)), [""; 0], "{good}");
        }
    }

    #[test]
    fn private_hosts_are_found() {
        let dot = ".";
        for bad in [
            format!("https://pypi{dot}internal/simple"),
            format!("https://a:b@10{dot}1.2.3:80/"),
            format!("x = \"http://mirror{dot}lan\""),
        ] {
            assert_eq!(private_hosts(&source("a.toml", &bad)).len(), 1, "{bad}");
        }
        for good in [
            "https://pypi.org/simple",
            "http://127.0.0.1:15672",
            "amqp://guest:guest@localhost/%2f",
            "a.internal",
        ] {
            assert_eq!(private_hosts(&source("a.toml", good)), [""; 0], "{good}");
        }
    }
}
