//! Questions on a terminal: what counts as a yes, and that Ctrl-C at the question changes nothing.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Pgmahout;

/// Runs the command on a pseudo-terminal, types the answer when asked; gives the status and the screen.
async fn answer(command: Pgmahout, keys: &str) -> (u32, String) {
    let pair = portable_pty::native_pty_system()
        .openpty(portable_pty::PtySize {
            rows: 50,
            cols: 160,
            pixel_width: 0,
            pixel_height: 0,
        })
        .expect("a pseudo-terminal");
    let standard = command.to_std();
    let mut builder = portable_pty::CommandBuilder::new(standard.get_program());
    builder.args(standard.get_args());
    builder.env_clear();
    for (name, value) in standard.get_envs() {
        if let Some(value) = value {
            builder.env(name, value);
        }
    }
    builder.cwd(command.home());
    let mut child = pair.slave.spawn_command(builder).expect("the program starts");
    drop(pair.slave);
    let mut output = pair.master.try_clone_reader().expect("the terminal's output");
    let screen = Arc::new(Mutex::new(String::new()));
    let drawn = Arc::clone(&screen);
    let reading = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            drawn
                .lock()
                .expect("no panic")
                .push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    });
    poll::until(Duration::from_secs(20), "the question", async || {
        screen.lock().expect("no panic").contains("[y/N]")
    })
    .await;
    let mut keyboard = pair.master.take_writer().expect("the terminal's input");
    keyboard.write_all(keys.as_bytes()).expect("the keys are typed");
    keyboard.flush().expect("the keys are sent");
    let status = poll::value(Duration::from_secs(20), "the program to end", async || {
        child.try_wait().expect("the program can be asked")
    })
    .await;
    drop(pair.master);
    reading.join().expect("no panic");
    let text = screen.lock().expect("no panic").clone();
    (status.exit_code(), text)
}

#[tokio::test]
async fn only_a_yes_is_a_yes_and_an_interrupt_at_the_question_changes_nothing() {
    let server = Postgres::start(Major::V15).await;
    let dsn = server.dsn("postgres");
    let ask = || {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout")).args([
            "role",
            "create-monitor",
            "watcher",
            "--quiet",
            "--dsn",
            &dsn,
        ])
    };
    let made = "SELECT count(*) FROM pg_roles WHERE rolname = 'watcher'";
    for (keys, status) in [("\u{3}", 130), ("\n", 3), ("n\n", 3), ("yep\n", 3)] {
        let (ended, screen) = answer(ask(), keys).await;
        assert_eq!(ended, status, "{keys:?}: {screen}");
        assert!(screen.contains("nothing was changed"), "{keys:?}: {screen}");
        assert_eq!(
            server.query_text("postgres", made).await,
            "0",
            "{keys:?} made the role"
        );
    }
    let (ended, screen) = answer(ask(), "y\n").await;
    assert_eq!(ended, 0, "{screen}");
    assert_eq!(server.query_text("postgres", made).await, "1");
}
