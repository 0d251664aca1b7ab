//! Discovery against a real etcd: the program of that name (`etcd-server` of Debian and Ubuntu). Where it is not installed
//! the tests that need it say so and check nothing, unless `THICKET_TEST_ETCD=required`.

mod etcd;
mod garbage;
mod lease;
mod lifecycle;
mod outage;
mod proxy;
mod secured;
mod statics;
mod support;
