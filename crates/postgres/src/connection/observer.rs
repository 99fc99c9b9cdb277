//! Reads along while a session starts: how the server authenticates, and the backend's process id, which
//! tokio-postgres keeps to itself. Enforces `require_auth` before any password is sent.

use crate::params::{AuthenticationMethod, RequireAuthentication};

/// What the server's greeting said.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeting {
    pub(super) authentication: Option<AuthenticationMethod>,
    pub(super) backend_pid: Option<i32>,
    pub(super) channel_bound: bool,
    /// The method that `require_auth` forbids, if the server asked for it.
    pub(super) forbidden: Option<AuthenticationMethod>,
}

/// Splits the incoming bytes into messages and looks at the first bytes of each (protocol documentation,
/// "Message Formats": one type byte, then a length that counts itself).
#[derive(Debug, Default)]
pub(super) struct Observer {
    required: Option<RequireAuthentication>,
    head: Vec<u8>,
    /// Bytes of the current message's body still to come.
    remaining: usize,
    done: bool,
}

/// Type, length, and the first word of the body.
const HEADER: usize = 5;
const WORD: usize = 4;

impl Observer {
    pub(super) fn new(required: Option<RequireAuthentication>) -> Self {
        Self {
            required,
            ..Self::default()
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Takes the next bytes. `false`: the server asked for a forbidden method.
    pub(super) fn feed(&mut self, mut bytes: &[u8], greeting: &mut Greeting) -> bool {
        while !self.done && !bytes.is_empty() {
            if self.head.len() < HEADER {
                let take = bytes.len().min(HEADER - self.head.len());
                self.head.extend_from_slice(&bytes[..take]);
                bytes = &bytes[take..];
                if self.head.len() == HEADER {
                    let length = word(&self.head[1..]);
                    self.remaining = usize::try_from(length).unwrap_or(0).saturating_sub(WORD);
                    self.done = matches!(self.head[0], b'Z' | b'E');
                    if self.remaining == 0 {
                        self.head.clear();
                    }
                }
                continue;
            }
            let wanted = (HEADER + WORD)
                .saturating_sub(self.head.len())
                .min(self.remaining);
            let seen = bytes.len().min(wanted);
            self.head.extend_from_slice(&bytes[..seen]);
            if self.head.len() == HEADER + WORD && seen > 0 && !self.look(greeting) {
                return false;
            }
            let take = bytes.len().min(self.remaining);
            self.remaining -= take;
            bytes = &bytes[take..];
            if self.remaining == 0 {
                self.head.clear();
            }
        }
        true
    }

    fn look(&self, greeting: &mut Greeting) -> bool {
        let value = word(&self.head[HEADER..]);
        match self.head[0] {
            b'K' => greeting.backend_pid = Some(value),
            b'R' if greeting.authentication.is_none() => {
                let method = match value {
                    0 => AuthenticationMethod::None,
                    5 => AuthenticationMethod::Md5,
                    7 | 8 => AuthenticationMethod::Gss,
                    9 => AuthenticationMethod::Sspi,
                    10 => AuthenticationMethod::ScramSha256,
                    _ => AuthenticationMethod::Password,
                };
                greeting.authentication = Some(method);
                if self
                    .required
                    .as_ref()
                    .is_some_and(|required| !required.allows(method))
                {
                    greeting.forbidden = Some(method);
                    return false;
                }
            }
            _ => {}
        }
        true
    }
}

fn word(bytes: &[u8]) -> i32 {
    bytes
        .first_chunk::<WORD>()
        .map_or(0, |bytes| i32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn greeting_bytes() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut message = |kind: u8, body: &[u8]| {
            bytes.push(kind);
            bytes.extend(i32::try_from(body.len() + 4).expect("short").to_be_bytes());
            bytes.extend(body);
        };
        message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]);
        message(b'R', &[0, 0, 0, 0]);
        message(b'S', b"a\0b\0");
        message(b'K', &[0, 0, 1, 2, 9, 9, 9, 9]);
        message(b'Z', b"I");
        bytes
    }

    proptest! {
        #[test]
        fn the_greeting_is_understood_however_it_is_cut(cuts in proptest::collection::vec(1usize..9, 1..60)) {
            let bytes = greeting_bytes();
            let (mut observer, mut greeting) = (Observer::default(), Greeting::default());
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().expect("cycled").min(rest.len()));
                prop_assert!(observer.feed(now, &mut greeting));
                rest = later;
            }
            prop_assert_eq!(greeting.authentication, Some(AuthenticationMethod::Md5));
            prop_assert_eq!(greeting.backend_pid, Some(258));
            prop_assert!(observer.is_done());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Observer::default().feed(&bytes, &mut Greeting::default());
        }
    }

    #[test]
    fn a_forbidden_method_stops_the_session() {
        let required = RequireAuthentication {
            methods: vec![AuthenticationMethod::ScramSha256],
            negated: false,
        };
        let mut greeting = Greeting::default();
        assert!(!Observer::new(Some(required)).feed(&greeting_bytes(), &mut greeting));
        assert_eq!(greeting.forbidden, Some(AuthenticationMethod::Md5));
    }
}
