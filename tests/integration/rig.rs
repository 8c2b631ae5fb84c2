//! Commands as a person runs them, on a terminal or not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Daemon, PATIENCE, exits, stdout};

pub(crate) fn json_of(output: Output) -> Value {
    let output = exits(output, 0);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stdout(&output)))
}

/// A command as a person runs it: its questions and messages are on a terminal.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    pub(crate) fn open(mut command: Command) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None).unwrap();
        let keyboard = File::from(pair.master);
        let input: OwnedFd = pair.slave.try_clone().unwrap();
        let child = command
            .env("TERM", "xterm")
            .stdin(Stdio::from(input))
            .stderr(Stdio::from(pair.slave))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The terminal's other end closes with the last of its holders, which shall be the child.
        drop(command);
        let mut screen = keyboard.try_clone().unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 4096];
            // Linux says EIO at the end.
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keyboard,
            screen: receiver,
            seen: String::new(),
        }
    }

    /// Waits until the screen has shown `text`.
    pub(crate) fn until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.screen.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("never shown: {text:?} ({error}): {}", self.seen),
            }
        }
    }

    pub(crate) fn write(&mut self, line: &str) {
        self.keyboard.write_all(line.as_bytes()).unwrap();
    }

    pub(crate) fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
    }

    /// The exit code, what it printed to standard output, and what the screen has shown.
    pub(crate) fn close(mut self) -> (Option<i32>, String, String) {
        let mut printed = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        let status = self.child.wait().unwrap();
        while let Ok(bytes) = self.screen.recv_timeout(PATIENCE) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        (status.code(), printed, self.seen.clone())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A daemon, and the commands on its project `p`.
pub(crate) struct Rig {
    pub(crate) daemon: Daemon,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self {
            daemon: Daemon::start(),
        }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.daemon.home.run(&[arguments, &["--project", "p"]].concat())
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        json_of(self.run(&[arguments, &["--json"]].concat()))
    }

    pub(crate) fn on_terminal(&self, arguments: &[&str]) -> Terminal {
        let arguments = [arguments, &["--project", "p"]].concat();
        Terminal::open(self.daemon.home.command(&arguments))
    }

    pub(crate) fn store(&self, text: &str, knowledge_type: &str) -> String {
        let stored = exits(self.run(&["store", text, "--type", knowledge_type]), 0);
        stdout(&stored).trim_end().to_owned()
    }

    pub(crate) fn total(&self) -> Value {
        self.json(&["stats"])["total"].take()
    }
}
