//! Plans: values that can be printed, tested and serialised.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a procedure itself says about what it is going to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDetails {
    /// What a person should know.
    pub facts: Vec<Fact>,
    /// What a person should think about.
    pub warnings: Vec<String>,
    /// What will be lost for good.
    pub losses: Vec<String>,
}

impl PlanDetails {
    /// Nothing to say yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fact.
    pub fn fact(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.facts.push(Fact {
            label: label.into(),
            value: value.into(),
        });
        self
    }

    /// Adds a warning.
    pub fn warning(mut self, text: impl Into<String>) -> Self {
        self.warnings.push(text.into());
        self
    }

    /// Adds a loss.
    pub fn loss(mut self, text: impl Into<String>) -> Self {
        self.losses.push(text.into());
        self
    }
}

/// One labelled figure of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// `rows in the dump`.
    pub label: String,
    /// `1,204,331`.
    pub value: String,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Its name in the journal.
    pub name: String,
    /// What it does.
    pub description: String,
    /// Whether it loses or overwrites something.
    pub destructive: bool,
    /// Whether it is done already.
    pub done: bool,
}

/// What is going to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The kind of procedure.
    pub kind: String,
    /// What it does.
    pub title: String,
    /// On what.
    pub target: String,
    /// What the procedure itself says.
    #[serde(flatten)]
    pub details: PlanDetails,
    /// The steps, in order.
    pub steps: Vec<PlannedStep>,
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "Plan: {}", self.title)?;
        writeln!(formatter, "  on {}", self.target)?;
        let width = self
            .details
            .facts
            .iter()
            .map(|fact| fact.label.chars().count())
            .max()
            .unwrap_or(0);
        for fact in &self.details.facts {
            writeln!(formatter, "  {:width$}  {}", fact.label, fact.value)?;
        }
        for (number, step) in self.steps.iter().enumerate() {
            let mark = match (step.done, step.destructive) {
                (true, _) => "  [done already]",
                (false, true) => "  [destructive]",
                (false, false) => "",
            };
            writeln!(formatter, "  {}. {}{mark}", number + 1, step.description)?;
        }
        for warning in &self.details.warnings {
            writeln!(formatter, "  warning: {warning}")?;
        }
        for loss in &self.details.losses {
            writeln!(formatter, "  will be lost: {loss}")?;
        }
        Ok(())
    }
}
