//! A TCP proxy that misbehaves when told: stalls, resets, cuts, refuses.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What the proxy does with the connections it has and gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Holds every connection open and passes nothing on: a partition.
    Stall,
    /// Resets the connections it has and every new one.
    Reset,
    /// Resets each connection after it passed this many bytes from the server to the client, counted
    /// over all connections since the mode was set.
    CutAfter(u64),
}

/// A TCP proxy on a free loopback port, on threads of its own.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    passed: Arc<AtomicU64>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy in front of `host:port`.
    pub fn start(target: &str) -> Self {
        let runtime = runtime("proxy");
        let (listener, address) = listen(&runtime);
        let (mode, watched) = watch::channel(Mode::Pass);
        let passed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&passed);
        let target = target.to_owned();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, watched, counter) = (target.clone(), watched.clone(), Arc::clone(&counter));
                tokio::spawn(async move { carry(client, &target, watched, &counter).await });
            }
        });
        Self {
            address,
            mode,
            passed,
            runtime: Some(runtime),
        }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port of [`address`](Self::address).
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what it does, for open connections too.
    pub fn set(&self, mode: Mode) {
        self.passed.store(0, Ordering::Relaxed);
        self.mode.send_replace(mode);
    }

    /// Bytes passed from the server to clients since the mode was set.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A runtime of its own, so that a test that blocks its thread does not stop the server it waits for.
pub(crate) fn runtime(name: &str) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .build()
        .expect("threads can be started")
}

/// A listener on a free loopback port, for use on `runtime`.
pub(crate) fn listen(runtime: &Runtime) -> (TcpListener, SocketAddr) {
    let listener =
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    listener
        .set_nonblocking(true)
        .expect("a socket can be non-blocking");
    let _guard = runtime.enter();
    (
        TcpListener::from_std(listener).expect("the runtime is running"),
        address,
    )
}

async fn carry(client: TcpStream, target: &str, mut mode: watch::Receiver<Mode>, passed: &AtomicU64) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    // Closed with data or not, the peer sees a reset, unless the end below was orderly.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut client, mut server) = (client, server);
    let (mut up, mut down) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Reset => return reset(&client, &server),
            Mode::CutAfter(limit) if passed.load(Ordering::Relaxed) >= limit => {
                return reset(&client, &server);
            }
            Mode::Stall => {
                if mode.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Mode::Pass | Mode::CutAfter(_) => {}
        }
        let most = match now {
            Mode::CutAfter(limit) => limit.saturating_sub(passed.load(Ordering::Relaxed)),
            _ => u64::MAX,
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX).clamp(1, down.len());
        // All three are cancellation safe: a read that loses the race has read nothing.
        tokio::select! {
            changed = mode.changed() => if changed.is_err() { return },
            read = client.read(&mut up) => match read {
                Ok(0) => {
                    // The client has said everything; let the server answer to its end.
                    let _ = server.shutdown().await;
                    let _ = tokio::io::copy(&mut server, &mut client).await;
                    let _ = client.shutdown().await;
                    return;
                }
                Ok(count) => if server.write_all(&up[..count]).await.is_err() { return },
                Err(_) => return,
            },
            read = server.read(&mut down[..most]) => match read {
                Ok(0) => {
                    let _ = client.shutdown().await;
                    return;
                }
                Ok(count) => {
                    passed.fetch_add(count as u64, Ordering::Relaxed);
                    if client.write_all(&down[..count]).await.is_err() { return }
                }
                Err(_) => return,
            },
        }
    }
}

fn reset(client: &TcpStream, server: &TcpStream) {
    let _ = (client.set_zero_linger(), server.set_zero_linger());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::postgres::{Major, Postgres};

    #[tokio::test]
    async fn a_session_sees_each_fault() {
        let server = Postgres::start(Major::V15).await;
        let proxy = Proxy::start(&format!("127.0.0.1:{}", server.port()));
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(proxy.port())
            .user("postgres")
            .dbname("postgres");

        let client = server.connect(&config).await.unwrap();
        client.simple_query("SELECT 1").await.unwrap();
        proxy.set(Mode::Stall);
        let answer = tokio::time::timeout(Duration::from_millis(200), client.simple_query("SELECT 2")).await;
        assert!(answer.is_err(), "a stalled proxy passed an answer on");
        proxy.set(Mode::Pass);
        client.simple_query("SELECT 3").await.unwrap();
        proxy.set(Mode::CutAfter(100_000));
        assert!(client.simple_query("SELECT repeat('x', 1000000)").await.is_err());
        assert_eq!(proxy.passed(), 100_000);
        proxy.set(Mode::Reset);
        assert!(server.connect(&config).await.is_err());
    }
}
