//! From a journal back to a procedure.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use serde_json::Value;

use crate::definition::Procedure;
use crate::error::StepError;

type Built<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Procedure>, StepError>> + Send + 'a>>;
type Constructor<'a> = Box<dyn Fn(Value) -> Built<'a> + Send + Sync + 'a>;

/// The kinds of procedures that this program knows how to build from [`Procedure::parameters`]. Filled by
/// the command line, which knows where connections and secrets come from.
#[derive(Default)]
pub struct Registry<'a> {
    constructors: BTreeMap<&'static str, Constructor<'a>>,
}

impl<'a> Registry<'a> {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Teaches it a kind.
    pub fn register<F, R>(&mut self, kind: &'static str, constructor: F)
    where
        F: Fn(Value) -> R + Send + Sync + 'a,
        R: Future<Output = Result<Box<dyn Procedure>, StepError>> + Send + 'a,
    {
        self.constructors.insert(
            kind,
            Box::new(move |parameters| Box::pin(constructor(parameters))),
        );
    }

    /// Builds a procedure. `None` for a kind that it does not know.
    pub(crate) fn build(&self, kind: &str, parameters: Value) -> Option<Built<'_>> {
        self.constructors
            .get(kind)
            .map(|constructor| constructor(parameters))
    }
}

impl std::fmt::Debug for Registry<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("Registry")
            .field(&self.constructors.keys())
            .finish()
    }
}
