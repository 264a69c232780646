//! What every lasting fault on a container has in common, so that one life (`node/lasting.rs`) fits all of them:
//!
//! ```text
//! find → intend → journal → settings held → inject → Injected → watch … → revert → settings released → Recovered
//! ```
//!
//! A kind of fault says which values of the container's cgroups it lowers ([`Lasting::intend`]); lowering them, writing
//! down how they were, several faults on one value and putting back are not its business (`setting.rs`). What else it
//! does (processes) is in `inject` and `revert`, and must end by itself when the daemon dies.
//!
//! To add a kind: an [`Action`] in `order.rs`, an implementation of [`Lasting`], a line in [`kind`].

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    container::{Container, ContainerError},
    freeze::Freezing,
    kill::Tools,
    order::{Action, Stress},
    report::{Reason, Usage},
    setting::{SettingError, Wanted},
    stress::Starving,
    usage::Reading,
};

/// Why a lasting fault was not injected, or ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum LastingError {
    /// The container is not to be hit.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A value of its cgroups could not be changed.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// It can't be done, or has ended; the message is for people.
    #[error("{message}")]
    Because {
        /// The word of the contract for it.
        reason: Reason,
        /// For people.
        message: String,
    },
}

impl LastingError {
    /// With a reason of the contract.
    pub fn because(reason: Reason, message: impl Into<String>) -> Self {
        Self::Because { reason, message: message.into() }
    }

    /// The word of the contract for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Container(error) => error.reason(),
            // The kernel could not take so much away from the container.
            Self::Setting(error) if error.is_busy() => Reason::OutOfMemory,
            Self::Setting(_) => Reason::Internal,
            Self::Because { reason, .. } => *reason,
        }
    }
}

/// What a fault has to say while it stands.
#[derive(Debug)]
pub enum Event {
    /// The user should know.
    Warning(String),
    /// It has ended by itself.
    Ended(LastingError),
}

/// What was measured at the time when the effect has to show.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Before the fault.
    pub before: Usage,
    /// Since it was injected.
    pub during: Usage,
    /// The newest reading.
    pub now: Reading,
}

/// One kind of lasting fault, on one container.
#[async_trait]
pub trait Lasting: Send {
    /// What can be prepared while the order to fire is awaited, without any effect on the container.
    fn arm(&mut self) {}
    /// Which values to lower. Everything that can be refused beforehand is refused here. No effect.
    async fn intend(&mut self, container: &Container) -> Result<Vec<Wanted>, LastingError>;
    /// Called when the values are lowered; returns when the fault is there. When it fails, [`Lasting::revert`] follows. May
    /// be dropped at any await, so whatever a thread goes on with then must be in the reach of `revert`.
    async fn inject(&mut self, container: &Container) -> Result<(), LastingError>;
    /// Returns when there is something to say. May be dropped at any time, and is called again.
    async fn watch(&mut self) -> Event;
    /// After how long the effect has to show; `None`: never measured.
    fn shows_within(&self) -> Option<Duration>;
    /// Whether what was measured is the effect that was asked for.
    fn judge(&self, measured: &Measured) -> Result<(), LastingError>;
    /// Ends what `inject` began, however far it came. Returns warnings.
    async fn revert(&mut self) -> Vec<String>;
}

/// The fault `id` for `action`; `None`: it is not a lasting one, or none that this daemon knows.
pub fn kind(tools: &Tools, id: &str, action: &Action) -> Option<Box<dyn Lasting>> {
    match action {
        Action::Kill(_) => None,
        Action::Freeze => Some(Box::new(Freezing::default())),
        Action::Stress(stress) => {
            let stress = Stress::clone(stress);
            Some(Box::new(Starving::new(tools.cgroups.proc().to_owned(), id, stress)))
        }
    }
}
