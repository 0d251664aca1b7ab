use std::time::Duration;

use rayon::prelude::*;
use serde::Serialize;
use thicket_simulation::{capacity, enough};

use super::Inputs;
use crate::Failure;

/// How much more than they can do is offered to replicas to see what they can.
const OVERLOAD: f64 = 1.2;
/// Questions that each place at a replica gets in a run: enough to see past its beginning and its end.
const TURNS: usize = 8;
/// Queries of a run at least.
const FEWEST: usize = 2_000;
/// Seconds that a load of so many queries a second lasts.
const LASTS: f64 = 40.0;
const MOST: f64 = 200_000.0;

/// What a number of replicas does over a gallery.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Point {
    pub(crate) gallery: usize,
    pub(crate) replicas: usize,
    /// Gallery hosts that keep up with the most.
    pub(crate) gallery_hosts: usize,
    /// Most queries a second.
    pub(crate) most_per_second: f64,
    /// Queries a second at which the following were taken.
    pub(crate) per_second: f64,
    pub(crate) p50_s: f64,
    pub(crate) p99_s: f64,
    /// Queries under way at a time, on average: what the coordinators together have to let in.
    pub(crate) under_way: f64,
    pub(crate) questions_per_query: f64,
}

/// How many replicas a load needs.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Need {
    pub(crate) gallery: usize,
    pub(crate) per_second: f64,
    pub(crate) gallery_hosts: usize,
    /// `None` where the most that were tried are too few.
    pub(crate) replicas: Option<usize>,
    pub(crate) p50_s: Option<f64>,
    pub(crate) p99_s: Option<f64>,
    pub(crate) under_way: Option<f64>,
}

/// Every number of replicas with every gallery: the most they can do, and how long queries take at a share of that.
pub(crate) fn curves(
    inputs: &Inputs,
    galleries: &[usize],
    replicas: &[usize],
    load: f64,
    seed: u64,
    done: impl Fn() + Sync,
) -> Result<Vec<Point>, Failure> {
    let pairs: Vec<(usize, usize)> = galleries
        .iter()
        .flat_map(|gallery| replicas.iter().map(move |replicas| (*gallery, *replicas)))
        .collect();
    // The largest take longest: they go first, so that nobody waits for one at the end.
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|place| std::cmp::Reverse(pairs[*place].1));
    let point = |place: usize| {
        let (gallery, replicas) = pairs[place];
        let point = point(inputs, gallery, replicas, load, seed)?;
        done();
        Ok::<_, Failure>((place, point))
    };
    let mut points = order.into_par_iter().with_max_len(1).map(point).collect::<Result<Vec<_>, _>>()?;
    points.sort_by_key(|(place, _)| *place);
    Ok(points.into_iter().map(|(_, point)| point).collect())
}

fn point(inputs: &Inputs, gallery: usize, replicas: usize, load: f64, seed: u64) -> Result<Point, Failure> {
    let queries = (replicas * inputs.replica.slots as usize * TURNS).max(FEWEST);
    let run = |per_second: f64| {
        let scenario = inputs.scenario(gallery, replicas, per_second, queries).map_err(Failure::bad_input)?;
        capacity(&scenario, seed).map_err(Failure::bad_input)
    };
    let most = run(inputs.estimate(gallery, replicas) * OVERLOAD)?.sustained;
    let per_second = most * load;
    let at_load = run(per_second)?;
    Ok(Point {
        gallery,
        replicas,
        gallery_hosts: inputs.gallery_hosts(gallery, most),
        most_per_second: most,
        per_second,
        p50_s: at_load.p50.as_secs_f64(),
        p99_s: at_load.p99.as_secs_f64(),
        under_way: at_load.under_way,
        questions_per_query: at_load.questions as f64 / queries as f64,
    })
}

/// For every load and gallery, the smallest number of replicas up to `most` that answers 99 of a hundred queries in time.
pub(crate) fn needs(
    inputs: &Inputs,
    galleries: &[usize],
    loads: &[f64],
    most: usize,
    p99: Duration,
    seed: u64,
    done: impl Fn() + Sync,
) -> Result<Vec<Need>, Failure> {
    let pairs: Vec<(usize, f64)> =
        galleries.iter().flat_map(|gallery| loads.iter().map(move |load| (*gallery, *load))).collect();
    let need = |(gallery, per_second): (usize, f64)| {
        let queries = (per_second * LASTS).clamp(FEWEST as f64, MOST) as usize;
        let scenario = inputs.scenario(gallery, 1, per_second, queries).map_err(Failure::bad_input)?;
        let least = (per_second / inputs.at_most(1)).floor() as usize;
        let found = match least < most {
            true => enough(&scenario, (least, most), p99, seed).map_err(Failure::bad_input)?,
            false => None,
        };
        done();
        Ok(Need {
            gallery,
            per_second,
            gallery_hosts: inputs.gallery_hosts(gallery, per_second),
            replicas: found.map(|enough| enough.replicas),
            p50_s: found.map(|enough| enough.capacity.p50.as_secs_f64()),
            p99_s: found.map(|enough| enough.capacity.p99.as_secs_f64()),
            under_way: found.map(|enough| enough.capacity.under_way),
        })
    };
    pairs.into_par_iter().with_max_len(1).map(need).collect()
}
