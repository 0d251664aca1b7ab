//! One contract, two stores: a file of one process, and etcd.

mod contract;
mod embedded;
#[allow(dead_code)] // shared with the tests of discovery
#[path = "../../../discovery/tests/discovery/etcd.rs"]
mod etcd;
mod several;
mod support;
