//! The file is read again when it changes, and so are the files it names.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Held;
use super::file::{load, look_at};
use crate::events::Events;

/// How often it is looked whether a file is another one.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl Held {
    /// Reads the file again whenever it changes, until `cancel`. One that is
    /// wrong changes nothing, and that is told.
    pub async fn follow(self, events: Events, cancel: CancellationToken) {
        while cancel
            .run_until_cancelled(sleep(LOOK_EVERY))
            .await
            .is_some()
        {
            let held = self.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || held.read_if_changed()).await else {
                continue;
            };
            match read {
                None => {}
                Some(Ok(text)) => events.emit("hooks.changed", "hooks", text).await,
                Some(Err(text)) => events.emit("alarm.hooks-file", "hooks", text).await,
            }
        }
    }

    /// What to tell, when there is another file.
    fn read_if_changed(&self) -> Option<Result<String, String>> {
        let path = self.0.path.as_ref()?;
        let before = self.look().clone();
        if look_at(&before) == before {
            return None;
        }
        let (declared, look) = load(path);
        *self.look() = look;
        Some(match declared {
            Ok(declared) => {
                let text = format!(
                    "{} was read anew: {} webhooks, {} triggers, {} routes",
                    path.display(),
                    declared.hooks.len(),
                    declared.triggers.len(),
                    declared.routes.len()
                );
                self.0.declared.store(Arc::new(declared));
                self.0.changed.send_modify(|n| *n += 1);
                Ok(text)
            }
            Err(error) => Err(format!("{error}\nwhat was in force before stays in force")),
        })
    }
}
