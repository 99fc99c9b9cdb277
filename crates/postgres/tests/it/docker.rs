//! Docker control against a stand-in for the engine: an HTTP server on a Unix socket that answers the
//! documented endpoints (Docker Engine API, `/containers/{id}/json`, `/start`, `/kill`, `/logs`,
//! `/exec`). It proves our requests and our reading of the answers, not the engine.

use pgmahout_postgres::control::{ControlError, Docker, ServerControl, ServerStatus, StopMode};
use pgmahout_types::diagnostic::Diagnose;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct State {
    running: bool,
    dies_at_start: bool,
    ignores_signals: bool,
    exec_exit_code: i64,
    calls: Vec<String>,
}

struct Engine {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Engine {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let socket = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self {
            _directory: directory,
            socket,
            state,
        }
    }

    fn control(&self) -> Docker {
        Docker::new("shop-db").with_socket(&self.socket)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().expect("no panic while held"))
    }
}

/// One request after the other on one stream.
async fn serve(mut stream: UnixStream, state: Arc<Mutex<State>>) {
    let mut received = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => received.extend_from_slice(&buffer[..count]),
            }
        };
        let head = String::from_utf8_lossy(&received[..end]).into_owned();
        let length = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length:")
                    .and_then(|text| text.trim().parse().ok())
            })
            .unwrap_or(0);
        while received.len() < end + length {
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => received.extend_from_slice(&buffer[..count]),
            }
        }
        let body = String::from_utf8_lossy(&received[end..end + length]).into_owned();
        received.drain(..end + length);
        let request = head.lines().next().unwrap_or_default().to_owned();
        let (answer, hijacked) = answer(&request, &body, &mut state.lock().expect("no panic while held"));
        if stream.write_all(&answer).await.is_err() || hijacked {
            return;
        }
    }
}

fn json(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nApi-Version: 1.41\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The engine's framing of output: stream, three zero bytes, length.
fn frame(text: &str) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    bytes.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

fn answer(request: &str, body: &str, state: &mut State) -> (Vec<u8>, bool) {
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // Clients put the version they agreed on first.
    let path = target.strip_prefix("/v1.41").unwrap_or(target);
    let no_content = b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
    let reply = match (method, path) {
        (_, "/version" | "/_ping") => json(
            "200 OK",
            r#"{"ApiVersion":"1.41","MinAPIVersion":"1.12","Version":"20.10.24"}"#,
        ),
        ("GET", "/containers/shop-db/json") => {
            let pid = if state.running { 4711 } else { 0 };
            json(
                "200 OK",
                &format!(
                    r#"{{"Id":"abc","State":{{"Running":{},"Pid":{pid}}}}}"#,
                    state.running
                ),
            )
        }
        ("POST", "/containers/shop-db/start") => {
            state.calls.push("start".to_owned());
            state.running = !state.dies_at_start;
            no_content
        }
        ("POST", "/containers/shop-db/exec") => {
            state.calls.push(format!("exec {body}"));
            json("201 Created", r#"{"Id":"e1"}"#)
        }
        ("POST", "/exec/e1/start") => {
            let mut reply = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".to_vec();
            reply.extend(frame(
                "pg_ctl: cannot promote server; server is not in standby mode\n",
            ));
            return (reply, true);
        }
        ("GET", "/exec/e1/json") => json(
            "200 OK",
            &format!(
                r#"{{"ID":"e1","Running":false,"ExitCode":{}}}"#,
                state.exec_exit_code
            ),
        ),
        (_, path) if path.starts_with("/containers/shop-db/kill") => {
            state
                .calls
                .push(format!("kill {}", path.rsplit('=').next().unwrap_or_default()));
            state.running = state.ignores_signals;
            no_content
        }
        (_, path) if path.starts_with("/containers/shop-db/logs") => {
            let body = frame("FATAL:  could not access file \"x\"\n");
            let mut reply = format!("HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            reply.extend(body);
            reply
        }
        _ => json("404 Not Found", r#"{"message":"No such container: other"}"#),
    };
    (reply, false)
}

#[tokio::test]
async fn a_container_is_started_and_stopped_by_the_modes_signal() {
    let engine = Engine::start();
    let control = engine.control();
    assert_eq!(control.status().await.expect("told"), ServerStatus::Stopped);
    control.start(LIMIT).await.expect("starts");
    assert_eq!(
        control.status().await.expect("told"),
        ServerStatus::Running { pid: Some(4711) }
    );
    for (mode, signal) in [
        (StopMode::Fast, "SIGINT"),
        (StopMode::Smart, "SIGTERM"),
        (StopMode::Immediate, "SIGQUIT"),
    ] {
        engine.with(|state| {
            state.running = true;
            state.calls.clear();
        });
        control.stop(mode, LIMIT).await.expect("stops");
        assert_eq!(
            engine.with(|state| state.calls.clone()),
            [format!("kill {signal}")]
        );
    }
}

#[tokio::test]
async fn reloading_and_promoting_run_pg_ctl_inside_as_the_servers_user() {
    let engine = Engine::start();
    let control = engine.control();
    assert!(matches!(
        control.reload().await,
        Err(ControlError::NotRunning { .. })
    ));
    engine.with(|state| state.running = true);
    control.reload().await.expect("reloads");
    let call = engine.with(|state| state.calls.pop()).expect("called");
    assert!(
        call.contains(r#""User":"postgres""#) && call.contains(r#""reload""#),
        "{call}"
    );
    engine.with(|state| state.exec_exit_code = 1);
    let error = control.promote(LIMIT).await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "cannot promote container shop-db: pg_ctl: cannot promote server; server is not in standby mode"
    );
}

#[tokio::test]
async fn a_container_that_ends_at_once_shows_its_log() {
    let engine = Engine::start();
    engine.with(|state| state.dies_at_start = true);
    let error = engine.control().start(LIMIT).await.expect_err("ends");
    assert!(
        error.to_string().contains("could not access file \"x\""),
        "{error}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("shared_preload_libraries"))
    );
}

#[tokio::test]
async fn a_server_that_does_not_stop_is_never_killed() {
    let engine = Engine::start();
    engine.with(|state| (state.running, state.ignores_signals) = (true, true));
    let error = engine
        .control()
        .stop(StopMode::Fast, Duration::from_millis(300))
        .await
        .expect_err("goes on");
    assert!(
        matches!(
            error,
            ControlError::TimedOut {
                operation: "stop",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(engine.with(|state| state.calls.clone()), ["kill SIGINT"]);
}

#[tokio::test]
async fn a_missing_container_or_engine_is_said() {
    let engine = Engine::start();
    let error = Docker::new("other")
        .with_socket(&engine.socket)
        .status()
        .await
        .expect_err("missing");
    assert_eq!(error.to_string(), "there is no container other");
    let error = Docker::new("x")
        .with_socket("/nonexistent/docker.sock")
        .status()
        .await
        .expect_err("no engine");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("docker ps")),
        "{error}"
    );
}
