#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

use plotters::prelude::*;

/// Size of a plot in pixels.
const SIZE: (u32, u32) = (800, 500);

/// Largest magnitude that is plotted; axes are unreliable beyond.
const LARGEST: f64 = 1e12;

/// Colours of the series, in order: distinct in lightness too, for readers who do not tell hues apart.
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 71, 140),
    RGBColor(214, 94, 20),
    RGBColor(20, 140, 110),
    RGBColor(150, 50, 120),
    RGBColor(120, 165, 225),
    RGBColor(90, 90, 96),
];

/// A named line.
#[derive(Debug, Clone)]
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// (x, y), joined in this order.
    pub points: Vec<(f64, f64)>,
}

/// A line plot.
#[derive(Debug, Clone, Copy)]
pub struct LinePlot<'a> {
    /// A line above.
    pub title: &'a str,
    /// Label of x, with its unit.
    pub x_label: &'a str,
    /// Label of y, with its unit.
    pub y_label: &'a str,
    /// Whether equal factors of y take equal space.
    pub log_y: bool,
    /// The lines.
    pub series: &'a [Series],
}

impl LinePlot<'_> {
    /// The plot as the text of an SVG file.
    ///
    /// Points that cannot be plotted (not finite, beyond 1e12, or not above 0 on a logarithmic axis) are left out,
    /// so that a diverged curve still shows where it diverged. A plot without points says so: a report must not
    /// fail the work that it reports.
    #[must_use]
    pub fn svg(&self) -> String {
        let lines: Vec<Vec<(f64, f64)>> = self.series.iter().map(|series| self.drawable(series)).collect();
        let mut svg = String::new();
        let drawn = match ranges(lines.iter().flatten()) {
            Some((x_range, y_range)) => self.draw(&mut svg, &lines, x_range, y_range),
            None => message(&mut svg, &format!("{}: no finite values", self.title)),
        };
        match drawn {
            Ok(()) => svg,
            Err(error) => format!("<svg xmlns=\"http://www.w3.org/2000/svg\"><!-- {error:?} --></svg>\n"),
        }
    }

    /// The points in axis coordinates.
    fn drawable(&self, series: &Series) -> Vec<(f64, f64)> {
        let on_axis = |(x, y): &(f64, f64)| (*x, if self.log_y { y.log10() } else { *y });
        let fits = |(x, y): &(f64, f64)| x.abs() <= LARGEST && y.abs() <= LARGEST;
        series.points.iter().map(on_axis).filter(fits).collect()
    }

    fn draw(
        &self,
        svg: &mut String,
        lines: &[Vec<(f64, f64)>],
        x_range: std::ops::Range<f64>,
        y_range: std::ops::Range<f64>,
    ) -> Drawn {
        let decades = y_range.end - y_range.start;
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 22))
            .margin(14)
            .x_label_area_size(46)
            .y_label_area_size(70)
            .build_cartesian_2d(x_range, y_range)?;
        chart
            .configure_mesh()
            .x_desc(self.x_label)
            .y_desc(self.y_label)
            .label_style(("sans-serif", 15))
            .axis_desc_style(("sans-serif", 17))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|y| if self.log_y { power_of_ten(*y, decades) } else { number(*y) })
            .draw()?;
        for (index, (series, points)) in self.series.iter().zip(lines).enumerate() {
            let style = COLOURS[index % COLOURS.len()].stroke_width(2);
            let drawn = match points.as_slice() {
                // A line through one point would be invisible.
                [point] => chart.draw_series([Circle::new(*point, 3, style.filled())])?,
                _ => chart.draw_series(LineSeries::new(points.iter().copied(), style))?,
            };
            if !series.name.is_empty() {
                drawn
                    .label(&series.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
            }
        }
        if self.series.iter().any(|series| !series.name.is_empty()) {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .label_font(("sans-serif", 15))
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.25))
                .margin(8)
                .draw()?;
        }
        root.present()?;
        Ok(())
    }
}

/// Writing into a string fails in no way that plotters' types rule out.
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A plot of text only.
fn message(svg: &mut String, words: &str) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(words.to_owned(), (20, 20), ("sans-serif", 17)))?;
    root.present()
}

/// The ranges of both coordinates with a little room, or `None` without points.
fn ranges<'a>(
    points: impl Iterator<Item = &'a (f64, f64)>,
) -> Option<(std::ops::Range<f64>, std::ops::Range<f64>)> {
    let widest = |range: Option<(f64, f64)>, value: f64| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    };
    let (xs, ys) = points.fold((None, None), |(xs, ys), (x, y)| (widest(xs, *x), widest(ys, *y)));
    let with_room = |(low, high): (f64, f64), share: f64| {
        // An axis needs a length that its numbers can resolve.
        let shortest = 1e-6 * low.abs().max(high.abs()).max(1e-3);
        let room = ((high - low) * share).max(if high - low < shortest { shortest } else { 0.0 });
        low - room..high + room
    };
    Some((with_room(xs?, 0.0), with_room(ys?, 0.04)))
}

/// A number as a tick says it: short, without the noise of binary fractions.
#[must_use]
pub fn number(value: f64) -> String {
    let trimmed = |text: String| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match value.abs() {
        0.0 => "0".to_owned(),
        1e-4..1e6 => trimmed(format!("{value:.6}")),
        // Sums of ticks miss zero by a rounding error.
        ..1e-12 => "0".to_owned(),
        _ => {
            let text = format!("{value:.6e}");
            match text.split_once('e') {
                Some((digits, power)) => format!("{}e{power}", trimmed(digits.to_owned())),
                None => text,
            }
        }
    }
}

/// The label of `10^exponent`; empty between powers of ten where the axis shows several of them.
fn power_of_ten(exponent: f64, decades: f64) -> String {
    let whole = exponent.round();
    if (exponent - whole).abs() < 1e-6 {
        return if (-4.0..6.0).contains(&whole) { number(10_f64.powf(whole)) } else { format!("1e{whole}") };
    }
    if decades >= 2.0 {
        return String::new();
    }
    let value = 10_f64.powf(exponent);
    // Three digits are enough to tell ticks of the same decade apart.
    number(format!("{value:.2e}").parse().unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        Series { name: name.to_owned(), points: points.to_vec() }
    }

    fn plot(series: &[Series], log_y: bool) -> String {
        LinePlot { title: "loss", x_label: "images seen", y_label: "mean squared error", log_y, series }.svg()
    }

    #[test]
    fn a_plot_says_what_it_shows() {
        let svg = plot(
            &[series("train", &[(0.0, 1.0), (10.0, 0.5)]), series("a < b", &[(0.0, 0.7), (10.0, 0.6)])],
            false,
        );
        for part in ["<svg", "</svg>", "loss", "images seen", "mean squared error", "train", "a &lt; b"] {
            assert!(svg.contains(part), "{part}");
        }
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), 4, "two lines and their legends");
        assert_eq!(plot(&[series("", &[(0.0, 1.0)])], false).matches("<circle").count(), 1);
    }

    #[test]
    fn logarithmic_axes_are_labelled_with_powers() {
        let svg = plot(&[series("", &[(0.0, 1e-7), (1.0, 100.0), (2.0, 0.0), (3.0, -1.0)])], true);
        assert!(svg.contains("1e-6") || svg.contains("1e-5"), "{svg}");
        assert_eq!(power_of_ten(-6.0, 4.0), "1e-6");
        assert_eq!(power_of_ten(-2.0, 4.0), "0.01");
        assert_eq!(power_of_ten(0.5, 4.0), "");
        assert_eq!(power_of_ten(0.5, 1.0), "3.16");
        assert_eq!(power_of_ten(-7.5, 1.0), "3.16e-8");
    }

    #[test]
    fn points_that_cannot_be_drawn_are_left_out_and_none_is_no_failure() {
        let odd = [(0.0, f64::NAN), (f64::INFINITY, 1.0), (1.0, 1e300), (2.0, f64::NEG_INFINITY)];
        for svg in
            [plot(&[series("", &odd)], false), plot(&[], false), plot(&[series("", &[(1.0, 0.0)])], true)]
        {
            assert!(svg.starts_with("<svg") && svg.contains("loss: no finite values"), "{svg}");
        }
        let mut some = odd.to_vec();
        some.push((1.0, 2.0));
        assert!(plot(&[series("", &some)], false).contains("<circle"));
    }

    #[test]
    fn no_range_upsets_the_axes() {
        let values =
            [0.0, 1e-300, 1e-17, 1e-9, 0.1, 1.0, 1.0 + f64::EPSILON, 12345.0, 1e12, -1e12, -0.1, -1e-12];
        for a in values {
            for b in values {
                for log_y in [false, true] {
                    let points = [(a, b), (b, a), (b, 1.0)];
                    let svg = plot(&[series("s", &points)], log_y);
                    assert!(svg.len() < 100_000, "{points:?}: {} bytes", svg.len());
                }
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (0.30000000000000004, "0.3"),
            (-2.5, "-2.5"),
            (100.0, "100"),
            (1e-17, "0"),
            (2.5e-7, "2.5e-7"),
            (3e9, "3e9"),
            (-1.5e12, "-1.5e12"),
        ] {
            assert_eq!(number(value), expected);
        }
    }
}
