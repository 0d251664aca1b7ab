//! Running the built binary.
#![allow(unreachable_pub, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ndarray::{Array1, Array2};
use ndarray_npy::{WritableElement, write_npy};

/// How one run of the command ended.
#[derive(Debug)]
pub struct Run {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The JSON document on stdout of a run that worked; nothing else may be there.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that the command did its work.
    #[track_caller]
    pub fn refuses_nothing(&self) {
        assert_eq!(self.status, 0, "{self:?}");
    }

    /// Asserts that bad input was refused: status 2, one line on stderr with every one of `parts`, nothing on stdout.
    #[track_caller]
    pub fn refuses(&self, parts: &[&str]) {
        assert_eq!(self.status, 2, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {:?}", self.stderr);
        }
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The command with a clean environment and no terminal.
pub fn thicket() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thicket"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("THICKET_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command to its end.
pub fn run(args: &[&str]) -> Run {
    thicket().args(args).output().unwrap().into()
}

/// A folder for the files of one test.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn matrix<T: WritableElement + Clone>(&self, name: &str, columns: usize, values: &[T]) -> String {
        let rows = values.len().checked_div(columns).unwrap_or(0);
        let array = Array2::from_shape_vec((rows, columns), values.to_vec()).unwrap();
        write_npy(self.path(name), &array).unwrap();
        self.arg(name)
    }

    pub fn list<T: WritableElement + Clone>(&self, name: &str, values: &[T]) -> String {
        write_npy(self.path(name), &Array1::from(values.to_vec())).unwrap();
        self.arg(name)
    }

    pub fn bytes(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.arg(name)
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }
}

/// A small deterministic stream of numbers in -1..1.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
