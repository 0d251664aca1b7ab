use std::net::SocketAddr;

use thicket_discovery::Address;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A way to etcd that can be cut and mended.
pub(crate) struct Proxy {
    pub(crate) address: Address,
    open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A way to `http://host:port`.
    pub(crate) async fn to(url: &str) -> Self {
        let target: SocketAddr = url.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind((crate::etcd::ip(), 0)).await.unwrap();
        let address = Address::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (open, is_open) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                if *is_open.borrow() {
                    tokio::spawn(carry(from, target, is_open.clone()));
                }
            }
        });
        Self { address, open, accepting }
    }

    /// Ends every connection, and each new one at once.
    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(mut from: TcpStream, target: SocketAddr, mut is_open: watch::Receiver<bool>) {
    let Ok(mut to) = TcpStream::connect(target).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
        _ = is_open.wait_for(|open| !open) => {}
    }
}
