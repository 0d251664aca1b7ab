//! A client of the Hugging Face hub: what a repository holds, and its files on disk, whole and checked.
//!
//! [`Hub::pull`] resolves a revision to a commit, asks what files the commit has, and brings the chosen ones into the
//! cache that Python's tools share ([`Place::Cache`]) or into a plain folder ([`Place::Folder`]). A transfer that is cut
//! goes on where it stopped, in the same call or in a later one. Nothing gets its final name before its digest is the
//! one that the hub has for it. Pulls of one file exclude each other by a lock file, also those of Python's tools.
//!
//! What the hub says is not trusted: names that would leave the folder are refused, answers are read up to a limit, and
//! the token goes to the configured endpoint alone, never to a host that the endpoint redirects to.

mod cache;
mod client;
mod digest;
mod error;
mod listing;
mod lock;
mod names;
mod place;
mod pull;
mod range;
mod settings;
mod space;
mod transfer;
mod url;

pub use cache::{Snapshot, snapshot};
pub use digest::Digest;
pub use error::HubError;
pub use listing::{RemoteFile, commit_of, next_page, tree_page};
pub use names::{Commit, RepoId, RepoPath, Revision};
pub use place::Place;
pub use pull::{Event, Hub, Pulled, PulledFile, Request};
pub use range::ContentRange;
pub use settings::{Retry, Settings, Token};
