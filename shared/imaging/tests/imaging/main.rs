//! Images as they are decoded and resized.

mod hostile;
mod pillow;
