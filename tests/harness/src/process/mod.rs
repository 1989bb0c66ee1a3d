//! Our own programs as real processes: started, watched by what they print, signalled, never left behind.

mod id;
mod watchdog;
mod worker;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

pub use id::ProcessId;
use watchdog::Watchdog;
pub use worker::WorkerProcess;

/// Names the directory of our binaries; `cargo xtask test` sets it.
pub const BINARIES_VARIABLE: &str = "MILLRACE_BIN_DIR";

const POLL: Duration = Duration::from_millis(10);

/// Path of one of our binaries: in `MILLRACE_BIN_DIR`, else beside the running test or program.
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os(BINARIES_VARIABLE) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let program = std::env::current_exe()?;
            let dir = program.parent().context("this program has no directory")?;
            // Tests lie one deeper than the binaries: target/<profile>/deps.
            let above = dir.parent().filter(|_| dir.ends_with("deps"));
            above.unwrap_or(dir).to_owned()
        }
    };
    let path = dir.join(name);
    ensure!(
        path.is_file(),
        "{} is not built; run `cargo build --workspace --bins`, or use `cargo xtask test`",
        path.display()
    );
    Ok(path)
}

/// Where a process's output goes.
struct Logs {
    stdout: PathBuf,
    stderr: PathBuf,
    /// In place of that file.
    with_stderr: Option<Stdio>,
}

impl Logs {
    fn of(directory: &Path) -> Self {
        Self { stdout: directory.join("stdout"), stderr: directory.join("stderr"), with_stderr: None }
    }
}

/// A child process with its output in files. Dropping it kills it; so does the end of this process, however it comes.
pub struct Process {
    name: String,
    child: Child,
    watchdog: Watchdog,
    stdout: PathBuf,
    stderr: PathBuf,
    /// Whether it leads a process group, which ends with it.
    leads_group: bool,
    /// Removed with this value, unless the caller gave the directory to keep.
    _directory: Option<TempDir>,
}

impl Process {
    /// Starts `command`, its output in files of a temporary directory.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(command: Command) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("millrace-").tempdir()?;
        Self::start(command, Logs::of(directory.path()), Some(directory), false)
    }

    /// As [`Process::spawn`], its standard error where the caller wants it: into a pipe that nobody reads, for example.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn_with_stderr(command: Command, stderr: Stdio) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("millrace-").tempdir()?;
        let logs = Logs { with_stderr: Some(stderr), ..Logs::of(directory.path()) };
        Self::start(command, logs, Some(directory), false)
    }

    /// Starts a program that starts others: it leads a process group, and what ends it ends the group. Its output and whatever
    /// it keeps in `directory` are removed in the end.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn_group(mut command: Command, directory: TempDir) -> Result<Self> {
        command.process_group(0);
        Self::start(command, Logs::of(directory.path()), Some(directory), true)
    }

    /// As [`Process::spawn`], its output in `<directory>/<name>.stdout` and `.stderr`, which stay.
    ///
    /// # Errors
    /// When the program cannot be started or the files not created.
    pub fn spawn_with_logs(command: Command, directory: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let log = |output: &str| directory.join(format!("{name}.{output}"));
        let logs = Logs { stdout: log("stdout"), stderr: log("stderr"), with_stderr: None };
        Self::start(command, logs, None, false)
    }

    fn start(
        mut command: Command,
        Logs { stdout, stderr, with_stderr }: Logs,
        directory: Option<TempDir>,
        leads_group: bool,
    ) -> Result<Self> {
        // Files, not pipes: nothing blocks when nobody reads, and a detached process goes on writing.
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(with_stderr.map_or_else(|| File::create(&stderr).map(Stdio::from), Ok)?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        // To `kill` a negative pid is a process group.
        let target = if leads_group { format!("-{}", child.id()) } else { child.id().to_string() };
        let watchdog = Watchdog::over(&target, directory.as_ref().map(TempDir::path))?;
        let name = command.get_program().to_string_lossy().into_owned();
        Ok(Self { name, child, watchdog, stdout, stderr, leads_group, _directory: directory })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// Everything printed to standard error so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Returns the first complete line, on either output, that contains `pattern`; waits until there is one.
    ///
    /// # Errors
    /// When the process ends first, or `timeout` passes; with the end of what it printed.
    pub fn wait_for_line(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            // Asked before reading, so that the last lines of a process that has just ended are still seen.
            let ended = self.child.try_wait()?;
            let found =
                [self.stdout(), self.stderr()].iter().find_map(|text| complete_line_with(text, pattern));
            if let Some(line) = found {
                return Ok(line);
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) without `{pattern}`:\n{}", self.name, self.tail());
            }
            if Instant::now() > deadline {
                bail!("{} printed no `{pattern}` in {timeout:?}:\n{}", self.name, self.tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks it to stop (SIGTERM) and does not wait.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGKILL, then waits for the end.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.kill_group();
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Members may outlive their leader; while there is one, the group's id is nobody else's.
    fn kill_group(&self) {
        if let (true, Ok(id)) = (self.leads_group, i32::try_from(self.child.id())) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }

    /// Any other signal: SIGINT, or SIGSTOP and SIGCONT to freeze it for a while. Nothing happens once it has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(id) = self.id() {
            id.signal(signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `timeout`; with the end of what it printed.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {timeout:?}:\n{}", self.name, self.tail());
            }
            std::thread::sleep(POLL);
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Leaves it running after this process.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn detach(mut self) -> Result<ProcessId> {
        let id = self.id().filter(|_| self.is_running());
        let id = id.with_context(|| format!("{} has ended:\n{}", self.name, self.tail()))?;
        self.watchdog.dismiss();
        // Dropping would kill.
        std::mem::forget(self);
        Ok(id)
    }

    fn id(&self) -> Option<ProcessId> {
        ProcessId::of(i32::try_from(self.child.id()).ok()?)
    }

    fn tail(&self) -> String {
        [&self.stdout, &self.stderr].map(|file| last_lines(file, 25)).join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.watchdog.dismiss();
    }
}

fn complete_line_with(text: &str, pattern: &str) -> Option<String> {
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| line.trim_end())
        .find(|line| line.contains(pattern))
        .map(str::to_owned)
}

/// What another process writes need not be UTF-8, and need not be there yet.
fn read_lossy(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The end of a log, for an error message.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = read_lossy(path);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn(command).unwrap()
    }

    #[test]
    fn lines_of_both_outputs_are_found_and_an_early_end_is_told() {
        let mut process = shell("echo ready on 1; echo trouble >&2; exit 3");
        assert_eq!(process.wait_for_line("ready", SOON).unwrap(), "ready on 1");
        assert_eq!(process.wait_for_line("trouble", SOON).unwrap(), "trouble");
        let error = process.wait_for_line("never", SOON).unwrap_err().to_string();
        assert!(error.contains("trouble"), "{error}");
        assert_eq!(process.wait(SOON).unwrap().code(), Some(3));
    }

    #[test]
    fn a_line_still_being_written_is_not_returned() {
        assert_eq!(complete_line_with("a\nready on", "ready"), None);
        assert_eq!(complete_line_with("a\nready on 1\n", "ready").as_deref(), Some("ready on 1"));
    }

    #[test]
    fn dropping_kills() {
        let process = shell("echo up; exec sleep 1000");
        let id = process.id().unwrap();
        assert!(id.is_running());
        drop(process);
        assert!(!id.is_running());
    }

    #[test]
    fn a_group_ends_with_its_leader() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo member $!; wait"]);
        let mut process = Process::spawn_group(command, tempfile::tempdir().unwrap()).unwrap();
        let line = process.wait_for_line("member", SOON).unwrap();
        let member = ProcessId::of(line.trim_start_matches("member ").parse().unwrap()).unwrap();
        assert!(member.is_running());
        drop(process);
        assert!(member.wait(SOON));
    }

    #[test]
    fn a_signal_reaches_it() {
        let mut process = shell("trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.05; done");
        process.wait_for_line("up", SOON).unwrap();
        process.terminate();
        assert_eq!(process.wait(SOON).unwrap().code(), Some(5));
        assert!(process.stdout().contains("asked"));
    }
}
