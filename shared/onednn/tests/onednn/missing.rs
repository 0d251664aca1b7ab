use std::path::Path;

use thicket_onednn::{Library, Missing};

#[test]
fn a_library_that_is_not_there_is_told_by_its_path() {
    let error = Library::open(&[Path::new("/nowhere/libdnnl.so.2")]).unwrap_err();
    assert!(matches!(error, Missing::Library { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("/nowhere/libdnnl.so.2"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn another_library_is_refused_by_the_function_that_it_lacks() {
    let error = Library::open(&[Path::new("libc.so.6")]).unwrap_err();
    assert_eq!(error, Missing::Function { name: "dnnl_version" });
}

#[test]
fn without_candidates_nothing_is_found() {
    assert!(matches!(Library::open(&[]), Err(Missing::Library { .. })));
}
