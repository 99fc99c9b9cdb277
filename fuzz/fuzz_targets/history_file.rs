//! Timeline history files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::{Lsn, TimelineHistory, TimelineId};

fuzz_target!(|input: (u32, u64, &[u8])| {
    let (number, position, content) = input;
    let Some(timeline) = TimelineId::new(number) else {
        return;
    };
    let Ok(history) = TimelineHistory::parse(timeline, content) else {
        return;
    };
    assert_eq!(
        TimelineHistory::parse(timeline, history.render().as_bytes()),
        Ok(history.clone())
    );

    let position = Lsn::new(position);
    let holder = history.timeline_at(position);
    assert!(history.contains(holder));
    assert!(history.descends_from(holder, position));
    for ancestor in history.ancestors() {
        let left = history.left(ancestor.timeline).expect("it is an ancestor");
        assert!(left <= ancestor.switchpoint);
        assert!(history.descends_from(ancestor.timeline, left));
    }
    let own = history.fork_point(&history).expect("it has itself in common");
    assert_eq!((own.timeline, own.lsn), (timeline, None));
    if let (Some(next), true) = (timeline.next(), position.is_valid()) {
        let child = history
            .branch(next, position, "branched")
            .expect("greater, and a position");
        let fork = history.fork_point(&child).expect("a common history");
        assert_eq!((fork.timeline, fork.lsn), (timeline, Some(position)));
    }
});
