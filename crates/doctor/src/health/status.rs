//! The four answers of a check.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Seen, and well.
    Ok,
    /// Seen, and it needs a look.
    Warn,
    /// Seen, and it is broken or about to be.
    Crit,
    /// Not seen. Counts as a warning in the overall status.
    Unknown,
}

impl Status {
    /// The word that people and machines read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Crit => "CRIT",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The status that a Nagios plugin exits with (Monitoring Plugins Development Guidelines, "Plugin
    /// Return Codes"), used for metrics as well.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warn => 1,
            Self::Crit => 2,
            Self::Unknown => 3,
        }
    }

    /// How much it weighs: UNKNOWN lies between OK and WARN, as a reason to look but not yet a finding.
    fn weight(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Unknown => 1,
            Self::Warn => 2,
            Self::Crit => 3,
        }
    }

    /// The worse of two.
    pub fn worst(self, other: Self) -> Self {
        if other.weight() > self.weight() {
            other
        } else {
            self
        }
    }

    /// The status of a whole run: the worst of all, UNKNOWN counting as WARN.
    pub fn overall(statuses: impl IntoIterator<Item = Self>) -> Self {
        match statuses.into_iter().fold(Self::Ok, Self::worst) {
            Self::Unknown => Self::Warn,
            worst => worst,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts_and_unknown_counts_as_a_warning() {
        use Status::{Crit, Ok, Unknown, Warn};
        assert_eq!(Status::overall([]), Ok);
        assert_eq!(Status::overall([Ok, Unknown, Ok]), Warn);
        assert_eq!(Status::overall([Ok, Unknown, Crit, Warn]), Crit);
        assert_eq!(Unknown.worst(Warn), Warn);
        assert_eq!(Ok.worst(Unknown), Unknown);
    }
}
