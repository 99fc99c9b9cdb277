//! Looking secrets up.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::{Secret, SecretError};

/// The longest secret that is accepted, in bytes.
const LONGEST: u64 = 64 * 1024;
/// How long a program may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Directories in which Docker and Kubernetes mount secrets. The runtime chooses the modes there (0444 by
/// default), and the container is the wall.
const CONTAINER_SECRETS: [&str; 2] = ["/run/secrets", "/var/run/secrets"];

pub(super) fn file(path: &Path) -> Result<Secret, SecretError> {
    let failed = |source| SecretError::File {
        path: path.to_path_buf(),
        source,
    };
    // Not blocking: opening a named pipe would wait for ever.
    let handle = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(failed)?;
    let metadata = handle.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )));
    }
    // The rule that libpq has for key files: nothing for group and others, but root may let a group read.
    let open = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & open != 0
        && !CONTAINER_SECRETS
            .iter()
            .any(|directory| path.starts_with(directory))
    {
        return Err(SecretError::LooseMode {
            path: path.to_path_buf(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    handle.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    text(&bytes, || format!("file:{}", path.display()))
}

pub(super) fn environment(name: &str) -> Result<Secret, SecretError> {
    let value = std::env::var_os(name).ok_or_else(|| SecretError::NotSet {
        name: name.to_owned(),
    })?;
    let value = Zeroizing::new(value.into_encoded_bytes());
    text(&value, || format!("env:{name}"))
}

pub(super) fn command(program: &str, arguments: &[String]) -> Result<Secret, SecretError> {
    command_within(program, arguments, COMMAND_LIMIT)
}

pub(super) fn command_within(
    program: &str,
    arguments: &[String],
    limit: Duration,
) -> Result<Secret, SecretError> {
    let cannot_run = |source| SecretError::Run {
        program: program.to_owned(),
        source,
    };
    let deadline = Instant::now() + limit;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot_run)?;
    let output = drain(child.stdout.take().expect("stdout was asked to be piped"));
    let errors = drain(child.stderr.take().expect("stderr was asked to be piped"));
    let status = loop {
        if let Some(status) = child.try_wait().map_err(cannot_run)? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(SecretError::TimedOut {
                program: program.to_owned(),
                limit,
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // A grandchild that keeps the pipes open must not hold us longer than the program was given.
    let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
    if !status.success() {
        let errors = errors
            .recv_timeout(left(deadline).min(Duration::from_secs(1)))
            .unwrap_or_default();
        let message = String::from_utf8_lossy(&errors);
        let message = message
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it said nothing");
        return Err(SecretError::Failed {
            program: program.to_owned(),
            status: status.to_string(),
            message: message.trim().to_owned(),
        });
    }
    let output = output
        .recv_timeout(left(deadline))
        .map_err(|_| SecretError::TimedOut {
            program: program.to_owned(),
            limit,
        })?;
    text(&output, || format!("command:{program}"))
}

/// Reads a pipe to its end on a thread of its own, keeping at most one byte more than a secret may have.
fn drain(mut pipe: impl Read + Send + 'static) -> std::sync::mpsc::Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::new());
        let _ = (&mut pipe).take(LONGEST + 1).read_to_end(&mut bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
        let _ = sender.send(bytes);
    });
    receiver
}

/// What came out, as text without one line end.
fn text(bytes: &[u8], origin: impl Fn() -> String) -> Result<Secret, SecretError> {
    let unusable = |what| SecretError::Unusable {
        origin: origin(),
        what,
    };
    if bytes.len() as u64 > LONGEST {
        return Err(unusable("longer than 64 KiB"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| unusable("not UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(unusable("empty"));
    }
    Ok(Secret::new(text))
}
