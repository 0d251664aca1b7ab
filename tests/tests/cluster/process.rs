use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A program that is killed with the test.
pub(crate) struct Process {
    program: PathBuf,
    flags: Vec<String>,
    pub(crate) log: PathBuf,
    child: Option<Child>,
}

impl Process {
    pub(crate) fn start(program: PathBuf, flags: Vec<String>, log: PathBuf) -> Self {
        let mut process = Self { program, flags, log, child: None };
        process.restart();
        process
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        let log = std::fs::File::options().append(true).create(true).open(&self.log).unwrap();
        let child = Command::new(&self.program)
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        self.child = Some(child);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// The status that it ends with.
    pub(crate) async fn ends(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap().code()
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program of this workspace, which was built with this test.
pub(crate) fn program(name: &str) -> PathBuf {
    let folder = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let program = folder.join(name);
    assert!(program.is_file(), "{} is not built: run the tests of the whole workspace", program.display());
    program
}
