//! All four roles together, over real gRPC, on tiny checkpoints with random weights: what is checked is how the parts
//! fit, not what the models say. [`quantization`] alone asks the sample's trained model.

mod chaos;
#[allow(dead_code)] // shared with the tests of discovery
#[path = "../../../shared/discovery/tests/discovery/etcd.rs"]
mod etcd;
mod galleries;
mod infrastructure;
mod jobs;
#[allow(dead_code)] // shared with the tests of the gallery
#[path = "../../../services/gallery/tests/gallery/contract/milvus.rs"]
mod milvus;
mod milvus_gallery;
mod overload;
mod person_search;
mod process;
mod processes;
#[allow(dead_code)] // shared with the tests of discovery
#[path = "../../../shared/discovery/tests/discovery/proxy.rs"]
mod proxy;
mod quantization;
mod support;
mod topology;
mod trace;
