"""The frame of the HTML reports, with styles for light, dark and print."""

from html import escape

STYLE = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5c6675;--line:#dfe3e9;--plain:#8a94a3;
--before:#c0692b;--after:#0f7b83;--teacher:#6d55a5;--good:#1b7a3d;--bad:#b3372f}
@media (prefers-color-scheme:dark){:root{--page:#12161c;--card:#1b212a;--ink:#e7eaef;
--soft:#9aa5b4;--line:#313a46;--plain:#8793a4;--before:#e79a5f;--after:#4fc0c7;--teacher:#ae9be0;
--good:#63c585;--bad:#ee8078}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1060px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:.2rem 0 1rem;max-width:26em;text-wrap:balance}
h2{font-size:1.25rem;margin:0}h3{font-size:1rem;margin:1.4rem 0 .5rem}
h4{font-size:.9rem;margin:.9rem 0 .2rem}
header ul{margin:0;padding-left:1.15rem;max-width:48em}header li{margin:.3rem 0}
.note{color:var(--soft);font-size:.9rem;margin:.1rem 0 .9rem}
section,.tile{background:var(--card);border:1px solid var(--line);border-radius:12px}
section{padding:1.3rem 1.4rem;margin-top:1.1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.9rem;
margin-top:1.6rem}
.tile{padding:.9rem 1.1rem;display:flex;flex-direction:column}
.tile span,.tile small{color:var(--soft);font-size:.88rem}
.tile b{font-size:1.9rem;line-height:1.25;font-variant-numeric:tabular-nums}
.plot{display:grid;gap:.3rem}
.row{display:grid;grid-template-columns:minmax(6rem,13rem) 1fr minmax(5.5rem,9rem);gap:.8rem;
align-items:center}
.label,.value{font-size:.92rem}.value{font-variant-numeric:tabular-nums;color:var(--soft)}
.track{position:relative;height:1.3rem}.track i{position:absolute;display:block;font-style:normal}
.bar{top:.2rem;bottom:.2rem;left:0;min-width:2px;border-radius:3px;background:var(--plain)}
.grid{top:0;bottom:0;width:1px;background:var(--line)}
.whisker{top:calc(50% - 2px);height:4px;border-radius:2px;opacity:.55}
.dot{top:calc(50% - 7px);width:14px;height:14px;margin-left:-7px;border-radius:50%}
.tick{transform:translateX(-50%);font-size:.78rem;color:var(--soft);white-space:nowrap}
.before{--c:var(--before)}.after{--c:var(--after)}.teacher{--c:var(--teacher)}
.plain{--c:var(--plain)}
.bar,.whisker,.dot,.key{background:var(--c)}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:.2rem 1.8rem}
.small .row{grid-template-columns:3.6rem 1fr 3.8rem;gap:.5rem}
.small .track{height:.85rem}.small .bar{top:.1rem;bottom:.1rem}
.small .label,.small .value{font-size:.82rem}
svg{width:100%;max-width:760px;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}
svg .grid{stroke:var(--line)}svg polyline{fill:none;stroke:var(--c);stroke-width:2}
svg circle{fill:var(--c)}
.legend{display:flex;gap:1.2rem;margin:.3rem 0 0;font-size:.88rem;color:var(--soft)}
.key{display:inline-block;width:.8rem;height:.8rem;border-radius:3px;margin-right:.4rem;
vertical-align:-.05rem}
article{border-top:1px solid var(--line);padding-top:.4rem;margin-top:1.3rem}
article code{font-weight:400;color:var(--soft);font-size:.82rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:inherit;font-size:.92rem;
max-height:18rem;overflow:auto}
.prompt{color:var(--soft);border-left:3px solid var(--line);padding-left:.8rem;max-height:9rem}
.answers{display:grid;grid-template-columns:repeat(3,1fr);gap:1.1rem;margin-top:.9rem}
.answer{border-top:3px solid var(--c);min-width:0}.answer h4{margin:.5rem 0 0}
.answer .note{margin:0 0 .4rem;font-size:.82rem}.good{color:var(--good)}.bad{color:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.4rem .7rem .4rem 0;
border-bottom:1px solid var(--line);vertical-align:top}
tbody th{font-weight:400;color:var(--soft)}
dl{display:grid;grid-template-columns:minmax(7rem,11rem) 1fr;gap:.3rem 1rem;
font-size:.88rem;margin:1.2rem 0 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media (max-width:720px){main{padding:1.2rem .9rem 3rem}h1{font-size:1.5rem}section{padding:1rem}
svg text{font-size:20px}
.answers{grid-template-columns:1fr}.plot>.row{grid-template-columns:1fr auto}
.plot>.row>.track{grid-column:1/-1;grid-row:2}.small .row{grid-template-columns:3.6rem 1fr 3.8rem}
.small .row>.track{grid-column:auto;grid-row:auto}
dl{grid-template-columns:1fr}dd{margin-bottom:.5rem}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--plain:#777;
--before:#c0692b;--after:#0f7b83;--teacher:#6d55a5;--good:#1b7a3d;--bad:#b3372f}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}body{font-size:11px}
main{max-width:none;padding:0}section{border:0;padding:0;margin-top:1.4rem}
pre,.prompt{max-height:none;overflow:visible}.row,.tile,h2,h3{break-inside:avoid}
h2,h3{break-after:avoid}}
"""


def render_document(title: str, body: str) -> str:
    """A self-contained page. `title` is text, `body` HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )
