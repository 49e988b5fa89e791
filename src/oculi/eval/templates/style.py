"""The report's style sheet: a Python string, because a run's report must be one file."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --panel: #f5f6f8; --ink: #191c20;
  --muted: #59626d; --rule: #d5dae0; --right: #0b7a4b; --wrong: #b3261e;
  --c0: #1d5fd1; --c1: #b45309; --c2: #047857; --c3: #a21caf; --c4: #0e7490; --c5: #be123c; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --panel: #1d2125; --ink: #e6e9ec; --muted: #9aa5b1;
    --rule: #3a424a; --right: #5fd3a0; --wrong: #ff8f85;
    --c0: #7fb0ff; --c1: #f5b04d; --c2: #4fd0a0; --c3: #e79bf0; --c4: #5fd0e6; --c5: #ff92a8; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule);
  font-size: 1.2rem; }
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; }
p { margin: .4rem 0; }
small, .quiet { color: var(--muted); font-size: .82rem; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  gap: .6rem 1rem; margin: 1rem 0; }
dl.facts dt { color: var(--muted); font-size: .8rem; }
dl.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
.notes { padding: .6rem 1rem; border-left: 4px solid var(--c1); background: var(--panel); }
.notes ul { margin: .2rem 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; }
td.text { overflow-wrap: anywhere; min-width: 9rem; white-space: pre-line; }
th { color: var(--muted); font-size: .8rem; font-weight: 600; }
td small { display: block; white-space: nowrap; }
svg * { stroke-linejoin: round; }
svg.bar { display: block; width: 9rem; height: 1.9rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
pre { overflow-x: auto; padding: .8rem; background: var(--panel); font-size: .8rem;
  line-height: 1.4; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr));
  gap: .8rem; }
figure { margin: 0; padding: .6rem; background: var(--panel); }
figure svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
figcaption { font-size: .85rem; }
figcaption b { color: var(--line); }
figure > svg { color: var(--line); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr));
  gap: .8rem; margin: .6rem 0; }
.card { display: flex; gap: .7rem; padding: .6rem; background: var(--panel);
  border-left: 4px solid var(--right); font-size: .9rem; }
.card.wrong { border-left: 4px double var(--wrong); }
.card img { width: 6rem; height: 6rem; object-fit: contain; flex: none; background: var(--paper); }
.card div { min-width: 0; flex: 1; }
.card p { margin: 0 0 .25rem; white-space: pre-line; }
.mark { font-weight: 700; color: var(--right); }
.wrong .mark { color: var(--wrong); }
"""
