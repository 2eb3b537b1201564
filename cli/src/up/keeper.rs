//! Keeps a process running until it is told not to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::process::{Part, Running};

/// First pause before a new start; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that ran so long is not failing to start.
const STEADY: Duration = Duration::from_secs(60);

/// A process that is kept running. One task owns it.
#[derive(Debug)]
pub struct Keeper {
    part: Part,
    stop: CancellationToken,
    anew: Arc<Notify>,
    task: JoinHandle<()>,
    trouble: watch::Receiver<Trouble>,
}

/// How often in a row it ended soon after its start, and how the last time.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// In a row.
    pub times: u32,
    /// The last time.
    pub how: String,
}

impl Keeper {
    /// Begins to keep it, from the process that is there, or a new one.
    #[must_use]
    pub fn new(part: Part, adopted: Option<Running>, say: fn(&str)) -> Self {
        let stop = CancellationToken::new();
        let (tell, trouble) = watch::channel(Trouble::default());
        let anew = Arc::new(Notify::new());
        let orders = Orders {
            stop: stop.clone(),
            anew: Arc::clone(&anew),
        };
        let task = tokio::spawn(keep(part.clone(), adopted, orders, tell, say));
        Self {
            part,
            stop,
            anew,
            task,
            trouble,
        }
    }

    /// A view of it that can be waited on elsewhere.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch {
            part: self.part.clone(),
            trouble: self.trouble.clone(),
        }
    }

    /// Ends the process, and starts it again.
    pub fn start_anew(&self) {
        self.anew.notify_one();
    }

    /// Ends the process, in good order if it can be, and waits for its end.
    pub async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// A view of a process that is kept.
#[derive(Clone, Debug)]
pub struct Watch {
    part: Part,
    trouble: watch::Receiver<Trouble>,
}

impl Watch {
    /// Waits until it has ended so many times in a row soon after its start.
    pub async fn troubled(mut self, times: u32) -> (Part, Trouble) {
        let found = self
            .trouble
            .wait_for(|t| t.times >= times)
            .await
            .map(|t| t.clone());
        match found {
            Ok(trouble) => (self.part, trouble),
            // The task has ended: it was told to.
            Err(_) => std::future::pending().await,
        }
    }
}

/// What the keeper's task is told.
struct Orders {
    stop: CancellationToken,
    anew: Arc<Notify>,
}

async fn keep(
    part: Part,
    mut adopted: Option<Running>,
    Orders { stop, anew }: Orders,
    tell: watch::Sender<Trouble>,
    say: fn(&str),
) {
    let mut times = 0u32;
    while !stop.is_cancelled() {
        let since = Instant::now();
        let started = match adopted.take() {
            Some(running) => Ok(running),
            None => part.start().await,
        };
        let how = match started {
            Ok(mut running) => {
                tokio::select! {
                    how = running.ended() => {
                        part.forget();
                        how
                    }
                    () = anew.notified() => {
                        running.end(part.patience).await;
                        part.forget();
                        "told to".to_owned()
                    }
                    () = stop.cancelled() => {
                        running.end(part.patience).await;
                        part.forget();
                        return;
                    }
                }
            }
            Err(error) => error.to_string(),
        };
        times = if since.elapsed() >= STEADY {
            1
        } else {
            times + 1
        };
        tell.send_replace(Trouble {
            times,
            how: how.clone(),
        });
        let pause = FIRST_PAUSE
            .saturating_mul(1 << (times - 1).min(10))
            .min(LONGEST_PAUSE);
        say(&format!(
            "{} ended ({how}); starting it again in {:.1} s; its log: {}",
            part.name,
            pause.as_secs_f64(),
            part.log.display()
        ));
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::identity::Identity;
    use std::path::Path;

    fn part(dir: &Path, script: &str) -> Part {
        Part {
            name: "part".into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            environment: &[],
            config: String::new(),
            log: dir.join("log"),
            note: dir.join("note.json"),
            patience: Duration::from_secs(5),
        }
    }

    fn quiet(_: &str) {}

    async fn noted(part: &Part, not: u32) -> Identity {
        for _ in 0..1_000 {
            let found = std::fs::read(&part.note)
                .ok()
                .and_then(|t| serde_json::from_slice::<Identity>(&t).ok());
            if let Some(identity) = found.filter(|i| i.pid != not && i.is_alive()) {
                return identity;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("it was not started");
    }

    #[tokio::test]
    async fn a_killed_process_comes_back_and_an_ended_one_does_not() {
        let dir = tempfile::tempdir().expect("directory");
        let part = part(dir.path(), "exec sleep 32");
        let keeper = Keeper::new(part.clone(), None, quiet);
        let first = noted(&part, 0).await;
        let pid = rustix::process::Pid::from_raw(first.pid.cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        let second = noted(&part, first.pid).await;
        assert!(!first.is_alive());
        keeper.end().await;
        assert!(!second.is_alive() && !part.note.exists());
    }

    #[tokio::test]
    async fn one_that_cannot_start_is_trouble() {
        let dir = tempfile::tempdir().expect("directory");
        let part = part(dir.path(), "echo cannot; exit 3");
        let keeper = Keeper::new(part.clone(), None, quiet);
        let (_, trouble) =
            tokio::time::timeout(Duration::from_secs(20), keeper.watch().troubled(2))
                .await
                .expect("in time");
        assert!(trouble.how.contains('3'), "{}", trouble.how);
        assert_eq!(part.last_words(1), "cannot");
        keeper.end().await;
    }
}
