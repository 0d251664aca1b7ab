use std::time::Duration;

/// How long anything may take before a test gives up; never what a test measures.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until something holds; gives up after [`DEADLINE`] with what `else_say` says.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> bool, else_say: impl Fn() -> String) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let held = tokio::time::timeout(DEADLINE, waiting).await;
    assert!(held.is_ok(), "not in {DEADLINE:?}: {what}\n{}", else_say());
}
