//! Finding the guilty of a failed batch: its halves run apart, again and again, until those that fail are alone. Plain code; runs
//! on instance threads.

/// How requests of a batch end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End<A, E> {
    /// An answer for each, in order.
    Answered(Vec<A>),
    /// Failed alone: this one, and nobody else, is to blame.
    Guilty(E),
    /// Nobody waits for them any more; not run.
    Late,
}

/// Runs a batch; where it fails, its halves, and so on. `end` takes every request once, as soon as its end is known, and returns
/// whether to go on. Before anything runs again, what `is_late` by then is let go.
///
/// One guilty request among `n` costs some `2 log2 n` runs more. Where all are guilty it is `2n - 1` instead of the `n + 1` of
/// running each alone: less than twice as much, for work that fails anyway.
pub(super) fn run<J, A, E>(
    batch: Vec<J>,
    is_late: impl Fn(&J) -> bool,
    mut run: impl FnMut(&[J]) -> Result<Vec<A>, E>,
    mut end: impl FnMut(Vec<J>, End<A, E>) -> bool,
) -> bool {
    let mut is_first = true;
    let mut parts = vec![batch];
    while let Some(part) = parts.pop() {
        // The first was looked through when it was collected.
        let (late, mut part) = match is_first {
            true => (Vec::new(), part),
            false => part.into_iter().partition(&is_late),
        };
        is_first = false;
        let goes_on = late.is_empty() || end(late, End::Late);
        if !goes_on {
            return false;
        }
        if part.is_empty() {
            continue;
        }
        let goes_on = match run(&part) {
            Ok(answers) => end(part, End::Answered(answers)),
            Err(error) if part.len() == 1 => end(part, End::Guilty(error)),
            Err(_) => {
                let right = part.split_off(part.len() / 2);
                parts.extend([right, part]);
                true
            }
        };
        if !goes_on {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    struct Request {
        number: usize,
        is_guilty: bool,
        /// Runs after which nobody waits for it any more.
        patience: usize,
    }

    fn requests() -> impl Strategy<Value = Vec<Request>> {
        let request = (prop::bool::weighted(0.15), prop_oneof![3 => Just(usize::MAX), 1 => 1_usize..20]);
        prop::collection::vec(request, 1..70).prop_map(|requests| {
            let numbered = requests.into_iter().enumerate();
            numbered.map(|(number, (is_guilty, patience))| Request { number, is_guilty, patience }).collect()
        })
    }

    proptest! {
        #[test]
        fn each_request_ends_once_and_only_the_guilty_fail(batch in requests()) {
            let runs = Cell::new(0);
            let mut ends = vec![0; batch.len()];
            let guilty = batch.iter().filter(|request| request.is_guilty).count();
            let went_on = run(
                batch.clone(),
                |request| request.patience <= runs.get(),
                |part| {
                    assert!(runs.get() == 0 || part.iter().all(|request| request.patience > runs.get()), "late");
                    runs.set(runs.get() + 1);
                    let answers = || part.iter().map(|request| request.number).collect::<Vec<_>>();
                    if part.iter().any(|request| request.is_guilty) { Err(part.len()) } else { Ok(answers()) }
                },
                |part, end| {
                    for request in &part {
                        ends[request.number] += 1;
                    }
                    match end {
                        End::Answered(numbers) => {
                            assert!(part.iter().map(|request| request.number).eq(numbers));
                        }
                        End::Guilty(size) => assert!(size == 1 && part.len() == 1 && part[0].is_guilty),
                        End::Late => assert!(part.iter().all(|request| request.patience <= runs.get())),
                    }
                    true
                },
            );
            prop_assert!(went_on);
            prop_assert!(ends.iter().all(|&count| count == 1), "{ends:?}");
            // Each guilty one drags at most a pair of halves along on every level.
            let levels = batch.len().next_power_of_two().trailing_zeros() as usize;
            prop_assert!(runs.get() <= (1 + 2 * levels * guilty).min(2 * batch.len() - 1), "{} runs", runs.get());
        }
    }

    #[test]
    fn nothing_runs_once_nobody_takes_the_ends() {
        let mut runs = 0;
        let went_on = run(
            vec![1, 2, 3, 4],
            |_| false,
            |part| {
                runs += 1;
                if part.len() > 2 { Err(()) } else { Ok(part.to_vec()) }
            },
            |_, _| false,
        );
        assert!(!went_on);
        assert_eq!(runs, 2, "the whole and its left half");
    }
}
