//! Back ends that fail as requests tell them: what a broken kernel, driver or model does to a worker.
//!
//! One element of a request says what happens to the whole batch; the model behind answers the others.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_worker::guard::watchdog::Stopper;
use millrace_worker::model::backend::{Backend, BackendError};
use millrace_worker::model::signature::Signature;
use millrace_worker::schedule::batch::{BatchInput, BatchOutput};

/// The binary whose back ends are [`Faulty`].
pub const BINARY: &str = "millrace-faulty-worker";

/// Ends the process, as a fault in native code does.
pub const ABORT: f32 = -1001.0;
/// Fails.
pub const FAIL: f32 = -1002.0;
/// Never returns.
pub const HANG: f32 = -1003.0;

/// Names a folder: each back end writes there what it runs, before it does.
pub const RUNS_VARIABLE: &str = "MILLRACE_FAULTY_RUNS";

/// Names a folder: every run of a model fails while there is a file of its name.
pub const BROKEN_VARIABLE: &str = "MILLRACE_FAULTY_BROKEN";

/// Bytes that every row run leaves behind: the control of checks that look for leaks.
pub const LEAK_VARIABLE: &str = "MILLRACE_FAULTY_LEAK_BYTES";

/// A back end around another one, whose first input is FP32.
pub struct Faulty {
    inner: Box<dyn Backend>,
    /// The first element of each row that was run.
    runs: Option<File>,
    /// While this file is there every run fails.
    broken: Option<PathBuf>,
    /// Bytes to leave behind for each row.
    leak: usize,
}

impl Faulty {
    /// Around `inner`, which runs `model`.
    ///
    /// # Panics
    /// When the folder that [`RUNS_VARIABLE`] names cannot be written, or [`LEAK_VARIABLE`] is no number.
    pub fn around(model: &str, inner: Box<dyn Backend>) -> Self {
        let broken = std::env::var_os(BROKEN_VARIABLE).map(|folder| Path::new(&folder).join(model));
        let runs = std::env::var_os(RUNS_VARIABLE).map(|folder| {
            let name = format!("{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
            File::create(Path::new(&folder).join(name)).expect("the folder of runs can be written")
        });
        let leak = std::env::var(LEAK_VARIABLE).map_or(0, |bytes| bytes.parse().expect("a number of bytes"));
        Self { inner, runs, broken, leak }
    }

    fn note(&mut self, input: &BatchInput<'_>) {
        let Some(runs) = &mut self.runs else { return };
        let row = input.shape[1..].iter().product::<i64>() as usize;
        let rows = input.pieces.iter().flat_map(|piece| piece.data.as_chunks::<4>().0.iter().step_by(row));
        let rows: Vec<u8> = rows.flatten().copied().collect();
        // One write: it is there whole, also when the process is killed a moment later.
        runs.write_all(&rows).expect("the folder of runs can be written");
    }
}

/// Calls `each` with every run that back ends wrote into this folder: which of them, and a row's first element.
///
/// # Errors
/// When the folder cannot be read.
pub fn runs(folder: &Path, mut each: impl FnMut(&str, f32)) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        for row in std::fs::read(entry.path())?.as_chunks().0 {
            each(&name.to_string_lossy(), f32::from_le_bytes(*row));
        }
    }
    Ok(())
}

impl Backend for Faulty {
    fn run(
        &mut self,
        inputs: &[BatchInput<'_>],
        read: &mut dyn FnMut(&[Option<BatchOutput<'_>>]),
    ) -> Result<(), BackendError> {
        let Some(first) = inputs.first() else { return self.inner.run(inputs, read) };
        self.note(first);
        if self.leak > 0 {
            // Written, so that it is in RAM.
            Box::leak(vec![1u8; self.leak * first.shape[0] as usize].into_boxed_slice());
        }
        if self.broken.as_ref().is_some_and(|broken| broken.exists()) {
            return Err(BackendError::Model("it is broken".to_owned()));
        }
        for element in first.pieces.iter().flat_map(|piece| piece.data.as_chunks().0) {
            let element = f32::from_le_bytes(*element);
            if element == ABORT {
                std::process::abort();
            } else if element == FAIL {
                return Err(BackendError::Model("as it was told".to_owned()));
            } else if element == HANG {
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        }
        self.inner.run(inputs, read)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn stopper(&self) -> Box<dyn Stopper> {
        self.inner.stopper()
    }
}
