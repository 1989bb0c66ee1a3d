//! The stack under a project name of its own, and its certain end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::engine::{self, Container, docker, quiet};
use super::images;
use crate::workspace;

/// Removes what an interrupted test leaves. Starts when the pipe on its standard input ends without a word; several times,
/// since a Compose that was interrupted too may still be creating. `$0` is the project's label.
const CLEANER: &str = r#"
read -r _ && exit
echo 'compose-test was interrupted; removing its containers' >&2
for _ in 1 2 3; do
    docker ps --all --quiet --filter "label=$0" | xargs -r docker rm --force --volumes
    docker network ls --quiet --filter "label=$0" | xargs -r docker network rm
    docker volume ls --quiet --filter "label=$0" | xargs -r docker volume rm
    sleep 2
done >/dev/null
"#;

/// Compose, as this machine has it, with our files.
pub(super) struct Compose {
    program: &'static [&'static str],
    files: Vec<PathBuf>,
    environment: Vec<(&'static str, String)>,
    project: String,
}

impl Compose {
    /// Finds the program. `is_debian` adds the override.
    pub(super) fn find(is_debian: bool) -> Result<Self> {
        engine::check()?;
        const PROGRAMS: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];
        let answers = |program: &&[&str]| {
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).arg("version").stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let program = PROGRAMS.into_iter().find(answers);
        let program = program.context("Compose is not installed; Debian's package is docker-compose")?;
        let folder = workspace::root().join("compose");
        let mut files = vec![folder.join("docker-compose.yml")];
        if is_debian {
            files.push(folder.join("docker-compose.debian.yml"));
        }
        let project = format!("millrace-test-{}", std::process::id());
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let environment = vec![
            ("MILLRACE_IMAGES", images::folder()?.display().to_string()),
            ("MILLRACE_MODELS", folder.join("models").display().to_string()),
            ("RABBITMQ_USER", "tester".to_owned()),
            ("RABBITMQ_PASSWORD", random.trim().to_owned()),
            ("RABBITMQ_AMQP_PORT", "0".to_owned()),
            ("RABBITMQ_MANAGEMENT_PORT", "0".to_owned()),
        ];
        Ok(Self { program, files, environment, project })
    }

    pub(super) fn build(&self) -> Result<()> {
        quiet(self.command().arg("build")).map(drop)
    }

    /// The command line that a person would use.
    pub(super) fn by_hand(&self) -> String {
        let files: Vec<String> = self.files.iter().map(|file| format!("-f {}", file.display())).collect();
        format!("{} {} up", self.program.join(" "), files.join(" "))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program[0]);
        command.args(&self.program[1..]).args(["-p", &self.project]);
        for file in &self.files {
            command.arg("-f").arg(file);
        }
        command.envs(self.environment.iter().cloned());
        command
    }

    fn value(&self, variable: &str) -> &str {
        let found = self.environment.iter().find(|(name, _)| *name == variable);
        found.map_or("", |(_, value)| value)
    }
}

/// The stack; it goes when this process does, however it ends.
pub(super) struct Stack {
    compose: Compose,
    cleaner: RefCell<Child>,
}

impl Stack {
    pub(super) fn new(compose: Compose) -> Result<Self> {
        let cleaner = Command::new("sh")
            .args(["-c", CLEANER, &format!("com.docker.compose.project={}", compose.project)])
            .stdin(Stdio::piped())
            // A terminal's Ctrl-C must not end it before us.
            .process_group(0)
            .spawn()
            .context("cannot run sh")?;
        Ok(Self { compose, cleaner: RefCell::new(cleaner) })
    }

    /// `up -d` with more arguments.
    pub(super) fn up(&self, arguments: &[&str]) -> Result<()> {
        let detached = ["up", "-d", "--no-build"];
        self.compose(&[&detached, arguments].concat()).map(drop)
    }

    /// Any Compose command.
    pub(super) fn compose(&self, arguments: &[&str]) -> Result<String> {
        quiet(self.compose.command().args(arguments))
    }

    /// The service's containers, stopped ones too, in the order of their creation.
    pub(super) fn containers(&self, service: &str) -> Result<Vec<Container>> {
        engine::containers(&[self.label(), format!("label=com.docker.compose.service={service}")])
    }

    /// The broker as seen from this machine.
    pub(super) fn amqp_url(&self) -> Result<String> {
        let place = self.compose(&["port", "rabbitmq", "5672"])?;
        let [user, password] = ["RABBITMQ_USER", "RABBITMQ_PASSWORD"].map(|name| self.compose.value(name));
        Ok(format!("amqp://{user}:{password}@{}/%2f", place.trim()))
    }

    /// A column of `rabbitmqctl list_queues`, by queue.
    pub(super) fn queues(&self, column: &str) -> Result<BTreeMap<String, String>> {
        let broker = self.containers("rabbitmq")?.pop().context("there is no broker")?;
        let text = docker(&["exec", &broker.id, "rabbitmqctl", "--quiet", "list_queues", "name", column])?;
        let rows = text.lines().filter_map(|line| line.split_once('\t'));
        Ok(rows.map(|(queue, value)| (queue.to_owned(), value.trim().to_owned())).collect())
    }

    /// For a failure: what all containers said last.
    pub(super) fn show_logs(&self) {
        for container in engine::containers(&[self.label()]).unwrap_or_default() {
            let logs = engine::logs(&container.id).unwrap_or_default();
            eprintln!("--- {} ({}):\n{logs}", container.name(), container.state.status);
        }
    }

    /// Removes everything, and looks whether it has gone.
    pub(super) fn down(&self) -> Result<()> {
        self.compose(&["down", "--volumes", "--remove-orphans"])?;
        let label = self.label();
        for list in [&["ps", "--all"][..], &["volume", "ls"], &["network", "ls"]] {
            let left = docker(&[list, &["--quiet", "--filter", &label]].concat())?;
            ensure!(
                left.trim().is_empty(),
                "`down` left something behind (docker {}): {left}",
                list.join(" ")
            );
        }
        let mut cleaner = self.cleaner.borrow_mut();
        let Some(mut pipe) = cleaner.stdin.take() else { bail!("down was called twice") };
        writeln!(pipe, "done")?;
        drop(pipe);
        cleaner.wait()?;
        Ok(())
    }

    fn label(&self) -> String {
        format!("label=com.docker.compose.project={}", self.compose.project)
    }
}
