//! thicket-qwen
