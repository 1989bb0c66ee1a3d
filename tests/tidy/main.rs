//! DESIGN's invariants, as far as a search through the text can check them. A rule that fails names file, line and remedy.
//!
//! [`rules`] are plain functions over one file's text, each tested on a snippet that breaks it; the tests here apply them
//! to the workspace.

mod manifests;
mod rules;
mod source;

use rules::{Ban, banned, lines_above, machine_paths, private_hosts};
use source::{Source, workspace};

/// Product code: what runs in production. Tests, harness and xtask may know everything.
const PRODUCT: [&str; 3] = ["common/src/", "producer/", "worker/src/"];

/// No file may be longer than this; look twice at 300.
const MAX_LINES: usize = 400;

/// Files that are longer for a reason, and how long they may get. Take an entry out when its file has been split.
const LONGER: &[(&str, usize, &str)] = &[];

/// Words that only some files may use, and why.
const BANS: &[Ban] = &[
    Ban {
        words: &["lapin::", "use lapin"],
        inside: &PRODUCT,
        except: &["common/src/amqp/"],
        why: "the AMQP library is known to common/src/amqp alone, which hands out tickets instead",
    },
    Ban {
        words: &[" ort::", "(ort::", "use ort::"],
        inside: &PRODUCT,
        except: &["worker/src/model/onnx"],
        why: "ONNX Runtime is known to worker/src/model/onnx alone",
    },
    Ban {
        words: &["axum"],
        inside: &PRODUCT,
        except: &["producer/gateway/", "common/src/telemetry/admin"],
        why: "HTTP is served by the gateway and telemetry/admin alone",
    },
    Ban {
        words: &["basic_publish"],
        inside: &PRODUCT,
        except: &["common/src/amqp/publisher/session.rs"],
        why: "one place publishes: confirmed, bounded, overlapping",
    },
    Ban {
        words: &["basic_ack", "basic_nack", "BasicAckOptions", "BasicNackOptions", ".acker", "lapin::Acker"],
        inside: &PRODUCT,
        except: &["common/src/amqp/ticket.rs"],
        why: "a delivery is settled through its ticket only",
    },
    Ban {
        words: &["basic_reject", "BasicRejectOptions", "reject(", "basic_recover"],
        inside: &PRODUCT,
        except: &[],
        why: "a failed attempt is published to a retry queue and then acknowledged, never rejected",
    },
    Ban {
        words: &["basic_get"],
        inside: &PRODUCT,
        except: &["common/src/amqp/fetcher.rs"],
        why: "requests are pushed by the broker; only suspects are fetched one by one",
    },
    Ban {
        words: &["ticket.ack", "ticket.nack"],
        inside: &["worker/src/"],
        except: &["worker/src/outbound/settle.rs"],
        why: "in the worker settlement alone decides when a delivery is done",
    },
    Ban {
        words: &["x-queue-mode", "x-queue-version", "global: true"],
        inside: &PRODUCT,
        except: &[],
        why: "some broker from 3.10 to 4.3 refuses it",
    },
    Ban {
        words: &[
            "crate::amqp",
            "crate::config",
            "lapin",
            "ort::",
            "tokio",
            "axum",
            "std::fs",
            "std::net",
            "std::thread",
        ],
        inside: &["common/src/protocol/"],
        except: &[],
        why: "the protocol does no I/O and knows neither AMQP, HTTP nor ONNX Runtime",
    },
    Ban {
        words: &[
            "tokio",
            "lapin",
            "Instant::now",
            "SystemTime::now",
            "now_ms(",
            "sleep",
            "spawn",
            "std::fs",
            "std::net",
            "std::thread",
            "Mutex",
            "async ",
        ],
        inside: PLAIN,
        except: &[],
        why: "plain code: no socket, channel, clock or sleep; `now` is a parameter",
    },
    Ban {
        words: &["unbounded_channel", "UnboundedSender", "unbounded()", "unbounded::<", "mpsc::channel()"],
        inside: &PRODUCT,
        except: &[],
        why: "every channel is bounded, and its capacity has a name and a reason",
    },
    Ban {
        words: &["tokio::spawn", "task::spawn(", "spawn_local", "JoinSet"],
        inside: &PRODUCT,
        except: &[
            // Waits for the second signal, in order to end the process.
            "common/src/lifecycle.rs",
            // Waits for the signal of a run, and ends with the process.
            "producer/cli/src/submit/mod.rs",
        ],
        why: "tasks are spawned through the lifecycle's tracker, which waits for them",
    },
];

/// Rooms of plain code, property-tested.
const PLAIN: &[&str] = &[
    "common/src/protocol/",
    "common/src/fleet.rs",
    "common/src/amqp/guard/header.rs",
    "common/src/amqp/guard/frames.rs",
    "common/src/amqp/returns.rs",
    "producer/src/gate.rs",
    "worker/src/inbound/admission.rs",
    "worker/src/model/padding.rs",
    "worker/src/model/signature.rs",
    "worker/src/schedule/batch.rs",
    "worker/src/schedule/batcher.rs",
    "worker/src/schedule/cost.rs",
    "worker/src/schedule/lane.rs",
    "worker/src/schedule/runs.rs",
    "worker/src/schedule/scheduler.rs",
    "worker/src/swap/plan.rs",
];

fn assert_clean(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_word_is_where_it_belongs() {
    let sources = workspace();
    let rust: Vec<&Source> = sources.iter().filter(|source| source.has_extension(&["rs"])).collect();
    assert_clean(
        &BANS.iter().flat_map(|ban| rust.iter().flat_map(|source| banned(ban, source))).collect::<Vec<_>>(),
    );
    // A rule over files that have moved away would hold for ever.
    let places = BANS.iter().flat_map(|ban| ban.inside.iter().chain(ban.except));
    let later = ["producer/gateway/", "common/src/telemetry/admin"];
    for place in places.filter(|place| !later.contains(place)) {
        assert!(
            rust.iter().any(|source| source.path.starts_with(place)),
            "there is no {place} any more: adapt the rule"
        );
    }
}

#[test]
fn files_stay_short() {
    let sources = workspace();
    let code: Vec<&Source> =
        sources.iter().filter(|source| source.has_extension(&["rs", "py", "sh", "toml", "yml"])).collect();
    let mut complaints = Vec::new();
    for source in &code {
        let exempt = LONGER.iter().find(|(path, _, _)| source.path == *path);
        let limit = exempt.map_or(MAX_LINES, |(_, limit, _)| *limit);
        complaints.extend(lines_above(source, limit));
    }
    for (path, _, reason) in LONGER {
        let lines =
            code.iter().find(|source| source.path == *path).map_or(0, |source| source.text.lines().count());
        if lines <= MAX_LINES {
            complaints
                .push(format!("{path} has {lines} lines: take it off the list of longer files ({reason})"));
        }
    }
    assert_clean(&complaints);
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let sources = workspace();
    assert!(sources.iter().any(|source| source.path == "Cargo.lock"), "the whole workspace is searched");
    let paths = sources.iter().flat_map(machine_paths);
    assert_clean(&paths.chain(sources.iter().flat_map(private_hosts)).collect::<Vec<_>>());
}
