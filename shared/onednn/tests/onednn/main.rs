//! oneDNN behind the safe interface. The tests of products need the library: `libdnnl2` of Debian 12. Where it is not
//! installed they say so and check nothing, unless `THICKET_TEST_ONEDNN=required`.

mod exit;
mod missing;
mod products;
