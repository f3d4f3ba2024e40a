//! A full `send` of a thin volume of which a tenth is mapped, in the lab, against one that is mapped whole.

use super::lab_send::guest;
use super::{Bar, Figure, Setting};

const SCRIPT: &str = include_str!("../../bench/thin_send.sh");

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    println!("thin-send: 4 GiB, a tenth of it mapped, and all of it");
    let peer = setting.peers.given("thin_send");
    let guest = guest(setting, SCRIPT, "5G", ("BENCH_THIN_SEND", peer))?;
    let tenth = guest.seconds("tenth")?;
    let figure = |what: &str, other: f64, bar| Figure {
        bench: "thin-send",
        what: format!("send --stdout of a volume that is 10 % mapped / {what}"),
        measured: format!("{tenth:.2} s / {other:.2} s"),
        value: Some(tenth / other),
        bar,
        ..Figure::default()
    };
    let mut figures = vec![
        figure(
            "of one that is mapped whole",
            guest.seconds("full")?,
            Bar::AtMost(0.2),
        ),
        figure(
            "dd of one that is mapped whole",
            guest.seconds("read")?,
            Bar::None,
        ),
        figure("a single `lvs`", guest.seconds("lvs")?, Bar::None),
    ];
    if peer.is_some() {
        figures.push(figure(
            "thin_send of the same",
            guest.seconds("thin_send")?,
            Bar::None,
        ));
    }
    Ok(figures)
}
