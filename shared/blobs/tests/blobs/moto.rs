//! Starts an S3 server for a test and ends exactly what it started, however the test ends.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The program `moto_server`, or None on a machine that may do without.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("moto_server")).find(|file| file.is_file());
    if found.is_none() {
        let required = std::env::var_os("THICKET_TEST_S3") == Some(OsString::from("required"));
        assert!(!required, "moto_server is not on the PATH: pip install 'moto[server]'");
        eprintln!("not checked: moto_server is not on the PATH");
    }
    found
}

/// A server of S3 on a free port of loopback, with one bucket.
#[derive(Debug)]
pub(crate) struct Moto {
    child: Child,
    address: String,
}

impl Moto {
    /// Starts it and makes the bucket.
    pub(crate) fn start(bucket: &str) -> Option<Self> {
        let mut child = Command::new(program()?)
            .args(["--host", "127.0.0.1", "--port", "0"])
            .env("PYTHONUNBUFFERED", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It prints where it listens: " * Running on http://127.0.0.1:41234".
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("http://")?.1.trim().to_owned()))
            .expect("the server says where it listens");
        // A pipe that nobody reads would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        let server = Self { child, address };
        server.make(bucket);
        Some(server)
    }

    fn make(&self, bucket: &str) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!(
            "PUT /{bucket} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }

    /// What a client needs beside the URL.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
