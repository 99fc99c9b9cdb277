//! The byte stream that tokio-postgres is handed: connected, encrypted where wanted, observed while the
//! session starts.

use super::observer::{Greeting, Observer};
use super::socket::Socket;
use crate::params::RequireAuthentication;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// Plain or encrypted bytes.
pub(super) enum Channel {
    Plain(Socket),
    Encrypted(Box<tokio_rustls::client::TlsStream<Socket>>),
}

/// The stream of one session.
pub(super) struct Wire {
    channel: Channel,
    /// The hash that SCRAM can bind to.
    end_point: Option<Vec<u8>>,
    observer: Observer,
    greeting: Arc<Mutex<Greeting>>,
}

impl Wire {
    pub(super) fn new(
        channel: Channel,
        end_point: Option<Vec<u8>>,
        required: Option<RequireAuthentication>,
    ) -> (Self, Arc<Mutex<Greeting>>) {
        let greeting = Arc::new(Mutex::new(Greeting::default()));
        let wire = Self {
            channel,
            end_point,
            observer: Observer::new(required),
            greeting: Arc::clone(&greeting),
        };
        (wire, greeting)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let before = buffer.filled().len();
        let result = match &mut wire.channel {
            Channel::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Channel::Encrypted(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        };
        if !wire.observer.is_done() && matches!(result, Poll::Ready(Ok(()))) {
            let mut greeting = wire.greeting.lock().unwrap_or_else(PoisonError::into_inner);
            if !wire.observer.feed(&buffer.filled()[before..], &mut greeting) {
                return Poll::Ready(Err(io::Error::other(
                    "the server asked for a forbidden way of authentication",
                )));
            }
        }
        result
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if !wire.observer.is_done() && bytes.starts_with(b"p") {
            // SASLInitialResponse names its mechanism right after the length.
            let bound = bytes
                .get(5..)
                .is_some_and(|body| body.starts_with(b"SCRAM-SHA-256-PLUS\0"));
            if bound {
                wire.greeting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .channel_bound = true;
            }
        }
        match &mut wire.channel {
            Channel::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Channel::Encrypted(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().channel {
            Channel::Plain(socket) => Pin::new(socket).poll_flush(context),
            Channel::Encrypted(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().channel {
            Channel::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Channel::Encrypted(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.end_point {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.clone()),
            None => ChannelBinding::none(),
        }
    }
}

/// "Encrypts" a wire that is ready already. With [`configure`], tokio-postgres sends no request for TLS
/// of its own and takes the wire as it is, with its channel binding.
pub(super) struct Ready;

impl TlsConnect<Wire> for Ready {
    type Stream = Wire;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Wire, io::Error>>;

    fn connect(self, wire: Wire) -> Self::Future {
        std::future::ready(Ok(wire))
    }
}

/// The settings that go with [`Ready`].
pub(super) fn configure(config: &mut tokio_postgres::Config) {
    config
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
}
