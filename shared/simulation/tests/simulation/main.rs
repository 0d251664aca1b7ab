//! Thousands of simulated clusters, each of which has to decide as the plain algorithm does.

mod exactness;
mod load;
mod scenarios;
