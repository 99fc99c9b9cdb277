//! Why a verification could not be done. Damage is not among it: that is a result.

use pgmahout_store::StoreError;
use pgmahout_store::framed::FramedError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};

use crate::physical::stanza::StanzaError;

/// Why a verification could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The stanza could not be read or changed.
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key does not open what is there: nothing can be said about it.
    #[error("cannot open {object}")]
    Key {
        /// The object.
        object: String,
        /// Why.
        #[source]
        source: FramedError,
    },
    /// It was interrupted. What was found whole until then is remembered.
    #[error("the verification was interrupted")]
    Cancelled,
}

impl Diagnose for VerifyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Stanza(source) => source.hint(),
            Self::Store(source) => source.hint(),
            Self::Key { source, .. } => source.hint(),
            Self::Cancelled => Some("run it again: it goes on with what was not read yet".to_owned()),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Stanza(source) => source.outcome(),
            Self::Store(source) => source.outcome(),
            Self::Key { source, .. } => source.outcome(),
            Self::Cancelled => Outcome::Interrupted,
        }
    }
}
