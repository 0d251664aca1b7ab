//! The questions of one search: the one whose turn it is, and those that are asked ahead of theirs while replicas are idle.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::{Context, Poll};

use opentelemetry::KeyValue;
use thicket_proto::v1::{Hit, LocateResponse};
use thicket_runtime::Fault;
use thicket_telemetry::{instruments, names};
use thicket_thi::{Answer, Question};
use thicket_upstream::Turn;
use tracing::{Instrument, Span, info_span};

use crate::clients::{CallClients, Image};
use crate::placing::id;
use crate::search::{image_key, unusable_where_refused};
use crate::spans::number;

type Work<T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send>>;

/// What is asked about which candidates, and by whom.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) clients: CallClients,
    pub(crate) collection: String,
    /// Always the text as the caller wrote it, whatever came before.
    pub(crate) text: String,
    pub(crate) candidates: Vec<Hit>,
    pub(crate) yes_threshold: f64,
}

impl Subject {
    /// How an answer is read; none at all is unusable.
    pub(crate) fn read(&self, response: Option<&LocateResponse>) -> Answer {
        match response {
            Some(response) if response.usable => Answer::from_p_yes(response.p_yes, self.yes_threshold),
            _ => Answer::Unusable,
        }
    }

    fn fetch(&self, question: &Question<usize>) -> Work<Option<Image>> {
        let clients = self.clients.clone();
        let (collection, id) = (self.collection.clone(), id(&self.candidates[question.candidate]).to_owned());
        Box::pin(async move { clients.image(&collection, &id).await })
    }

    fn locate(
        &self,
        question: &Question<usize>,
        image: Option<Image>,
        turn: &Turn,
    ) -> Work<Option<LocateResponse>> {
        // A candidate that cannot be looked at has no answer.
        let Some(image) = image else { return Box::pin(std::future::ready(Ok(None))) };
        let (clients, text, turn) = (self.clients.clone(), self.text.clone(), turn.clone());
        let key = image_key(&self.candidates[question.candidate]);
        Box::pin(async move { unusable_where_refused(clients.locate(&text, image, key, &turn).await) })
    }
}

/// How far a question is.
enum Stage {
    Fetching(Work<Option<Image>>),
    Asking {
        image: Option<Image>,
        work: Work<Option<LocateResponse>>,
    },
    Answered(Looked),
    /// Nothing came of it. One that was asked ahead is asked anew when its turn comes, and only then.
    Failed(Fault),
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Fetching(_) => "Fetching",
            Self::Asking { .. } => "Asking",
            Self::Answered(_) => "Answered",
            Self::Failed(_) => "Failed",
        })
    }
}

/// What came of looking at a candidate.
#[derive(Debug, Clone)]
pub(crate) struct Looked {
    /// `None` where the candidate has no image.
    pub(crate) image: Option<Image>,
    /// `None` where nothing could be asked, or the model refused what it was given.
    pub(crate) response: Option<LocateResponse>,
}

#[derive(Debug)]
struct Open {
    question: Question<usize>,
    /// The round's, which everything that is done for the question is below.
    span: Span,
    turn: Turn,
    stage: Stage,
}

/// The questions that are open, by round. Dropping it stops them all.
#[derive(Debug)]
pub(crate) struct Rounds {
    subject: Subject,
    ask_ahead: usize,
    /// The search's, which every round's is below, whichever round's turn it is when it begins.
    span: Span,
    open: BTreeMap<usize, Open>,
    /// Of the last turn: the questions that may still matter, its own first.
    matter: Vec<Question<usize>>,
}

impl Rounds {
    /// At most `ask_ahead` rounds after the one whose turn it is are asked ahead. The current span is the search's.
    pub(crate) fn new(subject: Subject, ask_ahead: usize) -> Self {
        Self { subject, ask_ahead, span: Span::current(), open: BTreeMap::new(), matter: Vec::new() }
    }

    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// It is the turn of the first of the questions that may still matter, in the order of their rounds. Gives the span of
    /// its round.
    pub(crate) fn turn(&mut self, matter: Vec<Question<usize>>) -> Span {
        self.matter = matter;
        let Some(question) = self.matter.first().copied() else { return Span::none() };
        let known = self.open.get(&question.round).map(|open| (open.span.clone(), &open.stage));
        let (span, is_open) = match known {
            // What failed when nobody waited for it is no reason to fail now.
            Some((span, stage)) => (span, !matches!(stage, Stage::Failed(_))),
            None => (self.span_of(&question, false), false),
        };
        if is_open {
            count("used");
        } else {
            self.begin(question, span.clone());
        }
        if let Some(open) = self.open.get(&question.round) {
            open.turn.come();
        }
        self.plan();
        span
    }

    fn begin(&mut self, question: Question<usize>, span: Span) {
        let stage = Stage::Fetching(in_span(&span, self.subject.fetch(&question)));
        self.open.insert(question.round, Open { question, span, turn: Turn::default(), stage });
    }

    fn span_of(&self, question: &Question<usize>, ahead: bool) -> Span {
        let round = number(question.round);
        info_span!(parent: &self.span, "round", round, ahead, answer = tracing::field::Empty)
    }

    /// Whether the candidate whose turn it is has an image to look at.
    pub(crate) async fn has_image(&mut self) -> Result<bool, Fault> {
        self.until(|stage| match stage {
            Stage::Fetching(_) | Stage::Failed(_) => None,
            Stage::Asking { image, .. } | Stage::Answered(Looked { image, .. }) => Some(image.is_some()),
        })
        .await
    }

    /// What came of the question whose turn it is.
    pub(crate) async fn looked(&mut self) -> Result<Looked, Fault> {
        self.until(|stage| match stage {
            Stage::Answered(looked) => Some(looked.clone()),
            _ => None,
        })
        .await
    }

    /// Goes on with everything until the question whose turn it is has come so far.
    async fn until<T>(&mut self, reached: impl Fn(&Stage) -> Option<T>) -> Result<T, Fault> {
        std::future::poll_fn(|context| {
            loop {
                let Some(open) = self.open.get(&self.own()) else {
                    return Poll::Ready(Err(Fault::internal("no question has its turn")));
                };
                if let Some(value) = reached(&open.stage) {
                    return Poll::Ready(Ok(value));
                }
                if let Stage::Failed(fault) = &open.stage {
                    return Poll::Ready(Err(fault.clone()));
                }
                std::task::ready!(self.advance(context));
            }
        })
        .await
    }

    /// Goes on with everything for as long as something else takes: nobody's question waits for a slow caller.
    pub(crate) async fn beside<T>(&mut self, other: impl Future<Output = T>) -> T {
        let going_on = std::future::poll_fn(|context| {
            while self.advance(context).is_ready() {}
            Poll::<std::convert::Infallible>::Pending
        });
        tokio::select! {
            biased;
            output = other => output,
            never = going_on => match never {},
        }
    }

    /// The round whose turn it is; 0 where there is none.
    fn own(&self) -> usize {
        self.matter.first().map_or(0, |question| question.round)
    }

    /// Goes on with one question, if any can.
    fn advance(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let own = self.own();
        for (round, open) in &mut self.open {
            let mut has_moved = false;
            // A question whose image has come is sent before anything else is planned: its replica is not idle any more.
            while let Poll::Ready(next) = open.step(&self.subject, context) {
                has_moved = true;
                open.stage = next.unwrap_or_else(|fault| {
                    if *round != own {
                        tracing::debug!(round, reason = %fault.reason(), "a question asked ahead failed");
                        count("failed");
                    }
                    Stage::Failed(fault)
                });
            }
            if has_moved {
                self.plan();
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Stops what can no longer matter, and asks ahead what may while replicas are idle.
    fn plan(&mut self) {
        let says_yes = |open: &&Open| {
            matches!(&open.stage, Stage::Answered(looked)
                if self.subject.read(looked.response.as_ref()).confirms())
        };
        // The first Yes in candidate order wins: nothing after it is needed.
        let last = self.open.values().find(says_yes).map_or(usize::MAX, |open| open.question.round);
        let own = self.own();
        let wanted: Vec<Question<usize>> = self
            .matter
            .iter()
            .take(1 + self.ask_ahead)
            .filter(|question| question.round == own || question.round <= last)
            .copied()
            .collect();
        let keeps: BTreeSet<usize> = wanted.iter().map(|question| question.round).collect();
        self.open.retain(|round, open| {
            let is_kept = keeps.contains(round);
            if !is_kept {
                open.count_unused();
            }
            is_kept
        });
        let missing: Vec<_> =
            wanted.into_iter().filter(|question| !self.open.contains_key(&question.round)).collect();
        if missing.is_empty() {
            return;
        }
        // Those whose image is on its way have a replica in mind already.
        let is_fetching = |open: &&Open| matches!(open.stage, Stage::Fetching(_));
        let promised = self.open.values().filter(is_fetching).count();
        let idle = self.subject.clients.idle_answerers().saturating_sub(promised);
        for question in missing.into_iter().take(idle) {
            let span = self.span_of(&question, true);
            self.begin(question, span);
        }
    }

    /// Nothing more is asked: what was asked ahead in vain stops at once.
    pub(crate) fn stop(&mut self) {
        self.open.values().for_each(Open::count_unused);
        self.open.clear();
        self.matter.clear();
    }
}

impl Open {
    /// The next stage, once it is reached; there is none after an answer or a failure.
    fn step(&mut self, subject: &Subject, context: &mut Context<'_>) -> Poll<Result<Stage, Fault>> {
        match &mut self.stage {
            Stage::Fetching(work) => work.as_mut().poll(context).map_ok(|image| {
                let work = subject.locate(&self.question, image.clone(), &self.turn);
                Stage::Asking { image, work: in_span(&self.span, work) }
            }),
            Stage::Asking { image, work } => work
                .as_mut()
                .poll(context)
                .map_ok(|response| Stage::Answered(Looked { image: image.take(), response })),
            Stage::Answered(_) | Stage::Failed(_) => Poll::Pending,
        }
    }

    /// Its turn will not come.
    fn count_unused(&self) {
        if self.turn.has_come() {
            return;
        }
        match self.stage {
            Stage::Fetching(_) | Stage::Asking { .. } => count("cancelled"),
            Stage::Answered(_) => count("unneeded"),
            Stage::Failed(_) => {}
        }
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.stop();
    }
}

fn in_span<T: 'static>(span: &Span, work: Work<T>) -> Work<T> {
    Box::pin(work.instrument(span.clone()))
}

fn count(outcome: &'static str) {
    instruments().thi_ahead.add(1, &[KeyValue::new(names::OUTCOME, outcome)]);
}
