use std::process::Command;

use thicket_onednn::{Library, PackedLinear};

/// Set for the process that is ended.
const ENDS: &str = "THICKET_TEST_ENDS";
const STATUS: i32 = 7;
const ROUNDS: usize = 20;

/// Loads models on all threads and ends meanwhile.
fn end_in_the_middle(library: &'static Library) -> ! {
    for thread in 0..4 {
        std::thread::spawn(move || {
            for size in 1.. {
                let size = 16 * (size % 40 + thread + 1);
                let weight = vec![0f32; size * size];
                let map = PackedLinear::new(library, &weight, None, size, size).unwrap();
                map.forward(&weight, thicket_onednn::Activation::None, None::<&[f32]>).unwrap();
            }
        });
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    std::process::exit(STATUS);
}

#[test]
fn a_process_may_end_while_models_are_loaded() {
    let Ok(library) = Library::get() else { return eprintln!("not checked: oneDNN is not there") };
    if std::env::var_os(ENDS).is_some() {
        end_in_the_middle(library);
    }
    for round in 0..ROUNDS {
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "exit::a_process_may_end_while_models_are_loaded"])
            .env(ENDS, "1")
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(STATUS), "round {round}: {:?}", ended.status);
    }
}
