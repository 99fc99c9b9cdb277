//! What can go wrong with a request, and which requests it happens to.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status and S3's XML error, without being carried out.
    Status(u16),
    /// Never answered.
    Stall,
    /// The connection ends without an answer; the request is not carried out.
    Reset,
    /// Carried out, but the connection ends without an answer.
    LoseAnswer,
    /// Carried out, but the connection ends after this many bytes of the body.
    CutBody {
        /// Bytes of the body that arrive.
        after: u64,
    },
    /// Carried out, but nothing comes after this many bytes of the body.
    StallBody {
        /// Bytes of the body that arrive.
        after: u64,
    },
}

/// A fault, and the requests it happens to: all, unless restricted; once, unless told otherwise.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    method: Option<String>,
    target: Option<String>,
    skip: usize,
    times: usize,
}

impl Rule {
    /// The next request fails.
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            method: None,
            target: None,
            skip: 0,
            times: 1,
        }
    }

    /// Only requests of this method.
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only requests whose path and query contain this.
    pub fn containing(mut self, text: &str) -> Self {
        self.target = Some(text.to_owned());
        self
    }

    /// The first `count` requests that match are left alone.
    pub fn after(mut self, count: usize) -> Self {
        self.skip = count;
        self
    }

    /// This many requests fail.
    pub fn times(mut self, count: usize) -> Self {
        self.times = count;
        self
    }

    /// Every request that matches fails, until the faults are cleared.
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }

    fn matches(&self, method: &str, target: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self
                .target
                .as_deref()
                .is_none_or(|wanted| target.contains(wanted))
    }
}

/// A share of all requests that fails, each in a way of its own, by a seed.
#[derive(Debug)]
struct Weather {
    state: u64,
    percent: u64,
    faults: Vec<Fault>,
}

impl Weather {
    /// xorshift64*.
    fn draw(&mut self, below: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % below
    }

    fn fault(&mut self) -> Option<Fault> {
        if self.draw(100) >= self.percent {
            return None;
        }
        let which = self.draw(self.faults.len() as u64);
        let fault = self.faults[usize::try_from(which).unwrap_or_default()];
        Some(match fault {
            // Anywhere in small bodies and at the begin of large ones.
            Fault::CutBody { after } => Fault::CutBody {
                after: self.draw(after.max(1)),
            },
            Fault::StallBody { after } => Fault::StallBody {
                after: self.draw(after.max(1)),
            },
            other => other,
        })
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Mutex<Vec<Rule>>,
    weather: Mutex<Option<Weather>>,
    /// How many requests failed.
    failed: AtomicUsize,
}

impl Faults {
    pub(super) fn add(&self, rule: Rule) {
        self.rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(rule);
    }

    pub(super) fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn set_weather(&self, seed: u64, percent: u64, faults: &[Fault]) {
        let weather = Weather {
            state: seed.max(1),
            percent,
            faults: faults.to_vec(),
        };
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = Some(weather);
    }

    pub(super) fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// The fault for this request, counted as used.
    pub(super) fn take(&self, method: &str, target: &str) -> Option<Fault> {
        let fault = self.by_rule(method, target).or_else(|| {
            let mut weather = self.weather.lock().unwrap_or_else(PoisonError::into_inner);
            weather.as_mut().and_then(Weather::fault)
        });
        if fault.is_some() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        fault
    }

    fn by_rule(&self, method: &str, target: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        for rule in rules.iter_mut().filter(|rule| rule.matches(method, target)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.times > 0 {
                rule.times -= 1;
                return Some(rule.fault);
            }
        }
        None
    }
}

/// An error answer as S3 gives it (AWS, "Error responses").
pub(super) fn refusal(status: u16) -> hyper::Response<Answer> {
    let code = match status {
        403 => "AccessDenied",
        404 => "NoSuchKey",
        429 => "TooManyRequests",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>injected</Message><RequestId>0</RequestId></Error>"
    );
    hyper::Response::builder()
        .status(status)
        .header("content-type", "application/xml")
        .body(Answer::new(s3s::Body::from(text), None))
        .expect("the parts are valid")
}

/// An answer's body, passed on whole or up to a point.
pub(super) struct Answer {
    inner: Pin<Box<s3s::Body>>,
    /// Bytes still to pass on, and whether to hang then instead of ending the connection.
    cut: Option<(u64, bool)>,
    /// What was passed on gets this long to leave, as an error drops what is still buffered.
    flush: Pin<Box<Sleep>>,
}

impl Answer {
    pub(super) fn new(body: s3s::Body, cut: Option<(u64, bool)>) -> Self {
        Self {
            inner: Box::pin(body),
            cut,
            flush: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match this.cut {
            Some((0, true)) => return Poll::Pending,
            Some((0, false)) => {
                return this
                    .flush
                    .as_mut()
                    .poll(context)
                    .map(|()| Some(Err("the body was cut".into())));
            }
            _ => {}
        }
        let polled = this.inner.as_mut().poll_frame(context);
        let Some((left, _)) = &mut this.cut else {
            return polled.map_err(Into::into);
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                let passed = match frame.into_data() {
                    Ok(mut data) => {
                        let length = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
                        data.truncate(length);
                        *left -= length as u64;
                        this.flush
                            .as_mut()
                            .reset(Instant::now() + Duration::from_millis(50));
                        Frame::data(data)
                    }
                    Err(other) => other,
                };
                Poll::Ready(Some(Ok(passed)))
            }
            other => other.map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Also of a cut body: the client is promised the whole.
        self.inner.size_hint()
    }
}
