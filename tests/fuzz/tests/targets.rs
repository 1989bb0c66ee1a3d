//! Every target with its seeds, then with random bytes for a second, or whatever `cargo xtask fuzz` asks for.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use millrace_fuzz::TARGETS;

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

macro_rules! targets {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            bolero::check!().for_each(|input: &[u8]| millrace_fuzz::$name(input));
        })+

        #[test]
        fn seeds_of_all_targets_hold() {
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!([$(stringify!($name)),+], names[..], "a target that is not run");
            for (name, target) in TARGETS {
                let seeds = seeds(name);
                assert!(!seeds.is_empty(), "{name} has no seed");
                seeds.iter().for_each(|seed| target(seed));
            }
        }
    };
}

targets! { envelope headers bundle json binary bytes_strings batch control status switches configuration model_config }
