//! Requests in flight all the time while faults happen, each noted in a ledger.

use std::fmt::{self, Display};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use millrace_producer::{Client, Request, Response};
use ndarray::Array2;
use tokio::task::JoinHandle;

use crate::foreign::Foreign;
use crate::ledger::{Ledger, Limits, OK, Verdict, What};
use crate::stack::{Stack, eventually};

/// The tests' clients have no user of their own.
const TENANT: &str = "anonymous";
/// Their requests go to these in turn.
pub const TIERS: [&str; 3] = ["premium", "enterprise", "free"];
/// Where to keep the history; a temporary folder without it.
pub const HISTORY_VARIABLE: &str = "MILLRACE_HISTORY";
/// Chooses what is random.
pub const SEED_VARIABLE: &str = "MILLRACE_SEED";
/// Names a file that figures are written into, too.
pub const FIGURES_VARIABLE: &str = "MILLRACE_FIGURES";
/// How long second copies of what was answered may take to be done with.
const DRAINED: Duration = Duration::from_secs(120);

/// A number that the environment sets.
///
/// # Panics
/// When it is something else.
pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// What chooses the faults; printed, so that they can be had again.
pub fn seed() -> u64 {
    let seed = setting(SEED_VARIABLE).unwrap_or_else(rand::random);
    println!("seed {seed}: {SEED_VARIABLE} brings the same faults again");
    seed
}

/// What to send: rows of four equal numbers.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model.
    pub model: &'static str,
    /// Sent at once, to travel together where the client packs.
    pub burst: usize,
    /// Bursts in flight.
    pub in_flight: usize,
    /// Between the begins of two bursts, at least.
    pub pause: Duration,
    /// Longer than any of the faults lasts: a request may wait, it may not be given up.
    pub deadline: Duration,
    /// Whether this is the answer to a row of this number.
    pub is_own: fn(f32, &Response) -> bool,
}

impl Plan {
    /// Single requests to model `m`, as many as can be. It gives them back.
    pub const SINGLE: Self = Self {
        model: "m",
        burst: 1,
        in_flight: 64,
        pause: Duration::ZERO,
        deadline: Duration::from_secs(300),
        is_own: |number, response| gives(response, number),
    };
}

/// Whether an answer is one row of this number, to the bit.
pub fn gives(response: &Response, number: f32) -> bool {
    response
        .array::<f32>("y")
        .is_ok_and(|y| y.len() == 4 && y.iter().all(|y| y.to_bits() == number.to_bits()))
}

/// Sends requests until it is told not to.
pub struct Load {
    client: Client,
    over: Over,
    ended: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// Ends a load when it is dropped, also by a panic.
#[derive(Clone, Debug, Default)]
pub struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Begins to send. Numbers come from `numbers`: loads of one ledger share them.
    pub fn start(client: Client, plan: Plan, ledger: &Arc<Ledger>, numbers: &Arc<AtomicU32>) -> Self {
        let (ended, over) = (Arc::new(AtomicUsize::new(0)), Over::default());
        let sending = Sending {
            client: client.clone(),
            plan,
            ledger: Arc::clone(ledger),
            numbers: Arc::clone(numbers),
            ended: Arc::clone(&ended),
        };
        // Not a clone of the guard: that would end it when the task does.
        let task = tokio::spawn(sending.until(Arc::clone(&over.0)));
        Self { client, over, ended, task }
    }

    /// Requests that have ended.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits until so many more have ended, and returns how long that took.
    ///
    /// # Panics
    /// When it takes longer than two minutes.
    pub async fn flows(&self, more: usize) -> Duration {
        let (started, goal) = (Instant::now(), self.ended() + more);
        eventually("requests are answered", DRAINED, async || self.ended() >= goal).await;
        started.elapsed()
    }

    /// Requests that end in a second, over such a time from now.
    pub async fn pace(&self, over: Duration) -> f64 {
        let before = self.ended();
        tokio::time::sleep(over).await;
        (self.ended() - before) as f64 / over.as_secs_f64()
    }

    /// What ends the load when it is dropped.
    pub fn over(&self) -> Over {
        self.over.clone()
    }

    /// Sends nothing more, and waits until all have ended.
    ///
    /// # Panics
    /// When a request did in a way that the ledger does not know.
    pub async fn end(self) -> Client {
        drop(self.over);
        self.task.await.expect("the load ends by itself");
        self.client
    }
}

struct Sending {
    client: Client,
    plan: Plan,
    ledger: Arc<Ledger>,
    numbers: Arc<AtomicU32>,
    ended: Arc<AtomicUsize>,
}

impl Sending {
    async fn until(self, is_over: Arc<AtomicBool>) {
        let pace = (!self.plan.pause.is_zero()).then(|| tokio::time::interval(self.plan.pause));
        let bursts = stream::unfold(pace, async |mut pace| {
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            (!is_over.load(Ordering::Relaxed)).then_some(((), pace))
        });
        bursts.for_each_concurrent(self.plan.in_flight, |()| self.burst()).await;
    }

    async fn burst(&self) {
        join_all((0..self.plan.burst).map(|_| self.one())).await;
    }

    /// One request, from its publish to its end. The library hands out one answer for each handle and a client none that it did not
    /// ask for, so of the ledger's offences `Duplicated`, `Unexpected` and `Overheard` cannot be seen from here.
    async fn one(&self) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.send(number).await;
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    async fn send(&self, number: u32) {
        let Plan { model, deadline, is_own, .. } = self.plan;
        let tier = TIERS[number as usize % TIERS.len()];
        let row = Array2::from_elem((1, 4), number as f32);
        let request = Request::new(model).deadline(deadline).tier(tier).input_array("x", row.view());
        let request = request.expect("the row is well formed");
        self.ledger.note(number, What::Published { tenant: TENANT.to_owned() });
        let handle = match self.client.submit(request).await {
            Ok(handle) => handle,
            Err(error) => {
                eprintln!("request {number}: {error}");
                return self.ledger.note_unsubmitted(number, TENANT, &error);
            }
        };
        self.ledger.note(number, What::Confirmed);
        match handle.outcome().await {
            Ok(response) => {
                let is_own = is_own(number as f32, &response);
                let status = if is_own { OK } else { "another's result" };
                self.ledger
                    .note(number, What::Replied { status: status.to_owned(), tenant: TENANT.to_owned() });
            }
            Err(error) => {
                eprintln!("request {number}: {error}");
                self.ledger.note_failed(number, TENANT, &error);
            }
        }
    }
}

/// Notes what is left of a model's requests on the broker: there shall be nothing.
///
/// # Panics
/// When second copies of what was answered are not done with in time.
pub async fn note_residue(foreign: &Foreign, model: &str, ledger: &Ledger) {
    let tiers = TIERS.map(|tier| format!("request.{model}.{tier}"));
    for queue in tiers.into_iter().chain([format!("solo.{model}")]) {
        eventually("second copies are done with", DRAINED, async || foreign.depth(&queue).await == 0).await;
    }
    for queue in ["dead", "dead.inbox"] {
        let mut count = 0;
        while let Some(letter) = foreign.get(queue).await {
            eprintln!("left in {queue}: {:?}", letter.properties);
            count += 1;
        }
        ledger.note(queue, What::Residue { count });
    }
}

/// One fault under load, and what its ledger says.
pub struct Trial {
    name: &'static str,
    ledger: Arc<Ledger>,
    load: Load,
    amqp_url: String,
    prefix: String,
    model: &'static str,
    _folder: tempfile::TempDir,
}

impl Trial {
    /// Sends through `client` to a stack whose workers run already.
    ///
    /// # Panics
    /// When the broker or the file system fails.
    pub async fn begin(name: &'static str, stack: &Stack, client: Client, plan: Plan) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ledger = Ledger::create(&folder.path().join("history.jsonl")).expect("a history");
        let (ledger, model) = (Arc::new(ledger), plan.model);
        let (amqp_url, prefix) = (stack.amqp_url().to_owned(), stack.prefix().to_owned());
        let load = Load::start(client, plan, &ledger, &Arc::default());
        Self { name, ledger, load, amqp_url, prefix, model, _folder: folder }
    }

    /// The load.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Ends the load, and checks that every request has its result and nothing is left; prints the figures.
    ///
    /// # Panics
    /// When that is not so.
    pub async fn end(self) {
        let verdict = self.judge().await;
        // Nothing was full and nobody gave up.
        assert_eq!(verdict.ok, verdict.requests, "{verdict}");
    }

    /// As [`Trial::end`], where requests may be refused.
    ///
    /// # Panics
    /// When a request that was taken has no result, or something is left.
    pub async fn end_refused(self) {
        let verdict = self.judge().await;
        assert_eq!(verdict.ok + verdict.refused, verdict.requests, "{verdict}");
    }

    async fn judge(self) -> Verdict {
        let client = self.load.end().await;
        let foreign = Foreign::idle(&self.amqp_url, &self.prefix).await;
        note_residue(&foreign, self.model, &self.ledger).await;
        self.ledger.note("pending requests", What::Residue { count: client.pending() as u64 });
        client.close().await;
        judged(self.name, &self.ledger, Limits { starts: u32::MAX })
    }
}

/// Judges a ledger, prints its figures and checks that nothing is wrong.
///
/// # Panics
/// When something is.
pub fn judged(name: impl Display, ledger: &Ledger, limits: Limits) -> Verdict {
    let verdict = ledger.judge(limits).expect("the history is there");
    say(format_args!("fault {name}: {verdict}"));
    verdict.assert_clean();
    verdict
}

/// Prints a figure, and writes it into the file that [`FIGURES_VARIABLE`] names.
///
/// # Panics
/// When that cannot be written.
pub fn say(figure: fmt::Arguments<'_>) {
    println!("{figure}");
    if let Some(file) = std::env::var_os(FIGURES_VARIABLE) {
        let mut file = OpenOptions::new().append(true).create(true).open(file).expect("the file of figures");
        writeln!(file, "{figure}").expect("figures can be written");
    }
}
