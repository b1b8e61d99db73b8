// The form: classes, and the settings of one or two samplers as the server's JSON.

const byId = (id) => document.getElementById(id);

/** Checkboxes for all classes, of which the search shows those that match. */
export class Classes {
  constructor(names) {
    this.names = names;
    this.boxes = names.map((name, label) => {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.value = label;
      const row = document.createElement("label");
      row.append(box, ` ${label} ${name}`);
      return { box, row };
    });
    byId("classes").append(...this.boxes.map((it) => it.row));
    byId("classes").addEventListener("change", () => this.say());
    byId("search").addEventListener("input", () => this.search());
  }

  search() {
    const words = byId("search").value.toLowerCase().split(/\s+/);
    for (const { row } of this.boxes) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  }

  get chosen() {
    return this.boxes.filter((it) => it.box.checked).map((it) => Number(it.box.value));
  }

  set chosen(labels) {
    this.boxes.forEach(({ box }, label) => { box.checked = labels.includes(label); });
    this.say();
    this.boxes[labels[0]]?.row.scrollIntoView({ block: "nearest" });
  }

  say() {
    const names = this.chosen.map((it) => this.names[it].split(",")[0]);
    byId("chosen").textContent = names.length ? `Chosen: ${names.join(", ")}` : "Choose at least one class.";
  }
}

/** The fields of one sampler. */
export class Settings {
  constructor(place, title, { presets, solvers, can_share }) {
    const fields = byId("settings").content.firstElementChild.cloneNode(true);
    fields.querySelector("legend").textContent = title;
    byId(place).append(fields);
    this.field = (name) => fields.querySelector(`[name=${name}]`);
    this.fields = fields;
    this.presets = presets;
    this.field("preset").append(...presets.map((it) => new Option(it.name)), new Option("own", "", false));
    this.field("solver").append(...solvers.map((it) => new Option(it)));
    if (!can_share) this.field("sharing").disabled = true;
    this.field("preset").addEventListener("change", () => {
      const preset = presets.find((it) => it.name === this.field("preset").value);
      if (preset) this.value = preset.settings;
    });
    fields.addEventListener("input", ({ target }) => {
      if (target.name === "last") this.end = undefined;
      if (target.name !== "preset") this.field("preset").value = "";
      this.show();
    });
    this.value = presets[0].settings;
  }

  /** As the interface takes it. */
  get value() {
    const number = (name) => Number(this.field(name).value);
    const guidance = { ...this.guidance, scale: number("guidance"), interval: [number("low"), number("high")] };
    const [num_steps, timeshift] = [number("steps"), number("shift")];
    const grid = this.end ? { num_steps, timeshift, end: this.end } : { num_steps, last_step: number("last"), timeshift };
    const order = this.field("order").value;
    const sharing = {
      none: "none",
      ratio: `ratio:${number("ratio")},order:${order}`,
      uniform: `uniform:${number("every")},order:${order}`,
      plan: this.plan,
    }[this.field("sharing").value];
    return { solver: this.field("solver").value, grid, guidance, sharing };
  }

  set value({ solver, grid, guidance, sharing }) {
    const set = (name, value) => { this.field(name).value = value; };
    if (![...this.field("solver").options].some((it) => it.value === solver)) {
      this.field("solver").append(new Option(solver));
    }
    set("solver", solver);
    set("steps", grid.num_steps);
    this.end = grid.end;
    set("last", grid.last_step ?? grid.end / grid.num_steps);
    set("shift", grid.timeshift);
    this.guidance = guidance;
    set("guidance", guidance.scale);
    set("low", guidance.interval[0]);
    set("high", guidance.interval[1]);
    if (typeof sharing === "string") {
      const [, kind, number, order] = /^(none|ratio|uniform):?([^,]*)(?:,order:(\d))?$/.exec(sharing);
      set("sharing", kind);
      if (kind === "ratio") set("ratio", number);
      if (kind === "uniform") set("every", number);
      if (kind !== "none") set("order", order ?? 0);
    } else {
      this.plan = sharing;
      this.field("sharing").querySelector("[value=plan]").disabled = false;
      set("sharing", "plan");
    }
    const same = (it) => JSON.stringify(it.settings) === JSON.stringify({ grid, guidance, sharing, solver });
    set("preset", this.presets.find(same)?.name ?? "");
    this.show();
  }

  show() {
    const [kind, steps] = [this.field("sharing").value, Number(this.field("steps").value)];
    // Steps until an end are equal.
    if (this.end && steps > 0) this.field("last").value = this.end / steps;
    this.fields.querySelector(".ratio").hidden = kind !== "ratio";
    this.fields.querySelector(".uniform").hidden = kind !== "uniform";
    this.fields.querySelector(".order").hidden = kind !== "ratio" && kind !== "uniform";
  }
}

/** Settings in one line. */
export function inWords({ solver, grid, guidance, sharing }) {
  const shared = typeof sharing === "string"
    ? (sharing === "none" ? "no sharing" : sharing)
    : `plan of ${sharing.recompute_steps.length} of ${sharing.num_steps} steps, order ${sharing.order ?? 0}`;
  const shift = grid.timeshift === 1 ? "" : `, timeshift ${grid.timeshift}`;
  const end = grid.end ? ` until ${grid.end}` : "";
  return `${grid.num_steps} x ${solver}${end}${shift}, guidance ${guidance.scale} in (${guidance.interval.join(", ")}), ${shared}`;
}
