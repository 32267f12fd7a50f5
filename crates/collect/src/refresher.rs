//! A thread that makes the tables again while a session runs.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::LAUNCHER;
use profilemate_output::{Error, tables};
use profilemate_session::Session;
use profilemate_session::glance::{Glance, glance};

/// How much longer than a refresh took the next one waits: refreshing takes at most this part of one processor, however
/// much was recorded.
const REST: u32 = 50;

/// Niceness of the thread: the server goes first.
const NICENESS: i32 = 10;

/// Refreshes the tables of a session until it is stopped.
#[derive(Debug)]
pub struct Refresher {
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Refresher {
    /// Starts refreshing, at most every `interval` and only when something was recorded. `problem` is told what goes
    /// wrong.
    pub fn start(folder: &Path, interval: Duration, problem: impl Fn(&Error) + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let folder = folder.to_path_buf();
        let thread = std::thread::Builder::new()
            .name("refresh".into())
            .spawn(move || run(&folder, interval, &stopped, &problem));
        // Without a thread the tables still come at the end.
        Self { stop, thread: thread.ok() }
    }

    /// Stops; a refresh that is under way is completed first.
    pub fn stop(self) {
        drop(self.stop);
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

fn run(folder: &Path, interval: Duration, stopped: &mpsc::Receiver<()>, problem: &impl Fn(&Error)) {
    // Of this thread only. Where that is not allowed, refreshing is still bounded by `REST`.
    let _ = rustix::process::setpriority_process(None, NICENESS);
    let mut wait = interval;
    let mut last: Vec<Glance> = Vec::new();
    while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        let now = glance(folder).unwrap_or_default();
        // As long as the launcher is alone there is nothing to show.
        if now == last || now.iter().all(|log| log.role == LAUNCHER) {
            continue;
        }
        last = now;
        let began = Instant::now();
        match Session::open(folder).map_err(Error::from).and_then(|session| tables::write(&session, folder)) {
            // A log that is being made has no head yet.
            Ok(_) | Err(Error::Session(profilemate_session::Error::Empty(_))) => {}
            Err(error) => problem(&error),
        }
        wait = interval.max(began.elapsed() * REST);
    }
}
