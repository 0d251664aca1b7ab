use std::collections::HashMap;
use std::sync::OnceLock;

use prost::Message;
use prost_types::FileDescriptorSet;
use thicket_telemetry::names::OTHER_METHOD;

/// One method of the public contract.
#[derive(Debug, Clone)]
pub(crate) struct Method {
    /// `thicket.v1.GalleryService/Search`.
    pub(crate) name: String,
    /// Whether either side streams.
    pub(crate) streaming: bool,
}

/// Looks a request path (`/thicket.v1.GalleryService/Search`) up in the contract.
pub(crate) fn find(path: &str) -> Option<&'static Method> {
    static METHODS: OnceLock<HashMap<String, Method>> = OnceLock::new();
    let methods = METHODS.get_or_init(|| {
        let set = FileDescriptorSet::decode(thicket_proto::v1::FILE_DESCRIPTOR_SET)
            .unwrap_or_else(|error| unreachable!("the compiler wrote the descriptors: {error}"));
        let mut methods = HashMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    let streaming = method.client_streaming() || method.server_streaming();
                    methods.insert(format!("/{name}"), Method { name, streaming });
                }
            }
        }
        methods
    });
    methods.get(path)
}

/// The name of a path for metrics and logs; unknown paths share one name.
pub(crate) fn label(path: &str) -> &'static str {
    find(path).map_or(OTHER_METHOD, |method| &method.name)
}

/// Health and reflection: open to everybody, without a deadline, no part of the drain.
pub(crate) fn is_infrastructure(path: &str) -> bool {
    path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_knows_its_methods_and_which_stream() {
        assert!(!find("/thicket.v1.GalleryService/Search").expect("known").streaming);
        assert!(find("/thicket.v1.GalleryService/Upsert").expect("known").streaming);
        assert!(find("/thicket.v1.CoordinatorService/SearchPerson").expect("known").streaming);
        assert_eq!(label("/thicket.v1.GalleryService/Nothing"), "_OTHER");
    }
}
