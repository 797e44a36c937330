"""Queries on GeoQuery's database: wrong ones that are right there by luck, and right ones."""

# What is wrong, the gold query, and an answer with the same result on the real data.
LUCKY = [
    ("constant",
     "SELECT capital FROM state WHERE state_name = 'texas'",
     "SELECT 'austin'"),
    ("constant number",
     "SELECT COUNT(border) FROM border_info WHERE state_name = 'texas'",
     "SELECT 4"),
    ("constant from data",
     "SELECT population FROM city WHERE city_name = 'boulder' AND state_name='colorado'",
     "SELECT population FROM city WHERE population = 76685"),
    ("constant max",
     "SELECT MAX(population) FROM state",
     "SELECT population FROM state WHERE state_name = 'california'"),
    ("other table, same count",
     "SELECT COUNT(*) FROM state",
     "SELECT COUNT(*) FROM highlow"),
    ("symmetric",
     "SELECT border FROM border_info WHERE state_name='texas'",
     "SELECT state_name FROM border_info WHERE border='texas'"),
    ("symmetric count",
     "SELECT COUNT(border) FROM border_info WHERE state_name='utah'",
     "SELECT COUNT(state_name) FROM border_info WHERE border='utah'"),
    ("first row",
     "SELECT city_name FROM city WHERE state_name='texas' AND population=(SELECT "
     "MAX(population) FROM city WHERE state_name='texas')",
     "SELECT city_name FROM city WHERE state_name='texas' LIMIT 1"),
    ("first row of all",
     "SELECT mountain_name FROM mountain WHERE mountain_altitude=(SELECT "
     "MAX(mountain_altitude) FROM mountain)",
     "SELECT mountain_name FROM mountain LIMIT 1"),
    ("other measure",
     "SELECT state_name FROM state WHERE area=(SELECT MAX(area) FROM state)",
     "SELECT state_name FROM state WHERE density=(SELECT MIN(density) FROM state)"),
    ("other measure 2",
     "SELECT state_name FROM state WHERE density=(SELECT MIN(density) FROM state)",
     "SELECT state_name FROM state WHERE area=(SELECT MAX(area) FROM state)"),
    ("population for density",
     "SELECT capital FROM state WHERE area=(SELECT MAX(area) FROM state)",
     "SELECT capital FROM state WHERE density=(SELECT MIN(density) FROM state)"),
    ("ties",
     "SELECT city_name FROM city WHERE population=(SELECT MAX(population) FROM city)",
     "SELECT city_name FROM city ORDER BY population DESC LIMIT 1"),
    ("ties in a state",
     "SELECT city_name FROM city WHERE state_name='ohio' AND population=(SELECT "
     "MAX(population) FROM city WHERE state_name='ohio')",
     "SELECT city_name FROM city WHERE state_name='ohio' ORDER BY population DESC LIMIT 1"),
    ("ties least",
     "SELECT state_name FROM state WHERE population=(SELECT MIN(population) FROM state)",
     "SELECT state_name FROM state ORDER BY population LIMIT 1"),
    ("missing outer filter",
     "SELECT city_name FROM city WHERE state_name='texas' AND population=(SELECT "
     "MAX(population) FROM city WHERE state_name='texas')",
     "SELECT city_name FROM city WHERE population=(SELECT MAX(population) FROM city WHERE "
     "state_name='texas')"),
    ("missing filter river",
     "SELECT river_name FROM river WHERE traverse='colorado' AND length > 400",
     "SELECT river_name FROM river WHERE traverse='colorado'"),
    ("missing second text",
     "SELECT population FROM city WHERE city_name='boulder' AND state_name='colorado'",
     "SELECT population FROM city WHERE city_name='boulder'"),
    ("missing second text 2",
     "SELECT population FROM city WHERE city_name='austin' AND state_name='texas'",
     "SELECT population FROM city WHERE city_name='austin'"),
    ("largest city for capital",
     "SELECT capital FROM state WHERE state_name='arizona'",
     "SELECT city_name FROM city WHERE state_name='arizona' AND population=(SELECT "
     "MAX(population) FROM city WHERE state_name='arizona')"),
    ("capital for largest city",
     "SELECT city_name FROM city WHERE state_name='colorado' AND population=(SELECT "
     "MAX(population) FROM city WHERE state_name='colorado')",
     "SELECT capital FROM state WHERE state_name='colorado'"),
    ("largest city for lowest point",
     "SELECT lowest_point FROM highlow WHERE state_name='louisiana'",
     "SELECT city_name FROM city WHERE state_name='louisiana' ORDER BY population DESC LIMIT "
     "1"),
    ("sum of one",
     "SELECT SUM(population) FROM city WHERE state_name='alaska'",
     "SELECT population FROM city WHERE state_name='alaska'"),
    ("one for all",
     "SELECT city_name FROM city WHERE state_name='alaska'",
     "SELECT city_name FROM city WHERE state_name='alaska' AND population=(SELECT "
     "MAX(population) FROM city WHERE state_name='alaska')"),
    ("average of one",
     "SELECT AVG(population) FROM city WHERE state_name='delaware'",
     "SELECT MAX(population) FROM city WHERE state_name='delaware'"),
    ("wrong join column",
     "SELECT s.state_name FROM state s JOIN highlow h ON s.state_name=h.state_name WHERE "
     "h.lowest_elevation = (SELECT MIN(lowest_elevation) FROM highlow)",
     "SELECT state_name FROM highlow WHERE lowest_elevation = '-1'"),
    ("or for and",
     "SELECT city_name FROM city WHERE state_name='hawaii' AND population > 100000",
     "SELECT city_name FROM city WHERE state_name='hawaii' OR population > 90000000"),
    ("between for greater",
     "SELECT state_name FROM state WHERE population > 20000000",
     "SELECT state_name FROM state WHERE population BETWEEN 20000000 AND 30000000"),
    ("length for other",
     "SELECT COUNT(*) FROM mountain WHERE state_name='alaska'",
     "SELECT COUNT(*) FROM mountain WHERE mountain_altitude > 4400"),
    ("in for equals",
     "SELECT capital FROM state WHERE state_name IN (SELECT border FROM border_info WHERE "
     "state_name='maine')",
     "SELECT 'concord'"),
    ("all lakes",
     "SELECT lake_name FROM lake WHERE area > 400",
     "SELECT lake_name FROM lake"),
    ("max text 2",
     "SELECT highest_elevation FROM highlow WHERE state_name='alaska'",
     "SELECT highest_elevation FROM highlow WHERE length(highest_elevation)=4 ORDER BY "
     "highest_elevation DESC LIMIT 1"),
]  # fmt: skip

# Wrong too, and not found out: see what `database_perturbation.py` does not cover.
NOT_CAUGHT = [
    ("missing filter",
     "SELECT city_name FROM city WHERE state_name='wyoming' AND population > 40000",
     "SELECT city_name FROM city WHERE state_name='wyoming'"),
    ("distinct missing",
     "SELECT COUNT(DISTINCT traverse) FROM river WHERE river_name='colorado'",
     "SELECT COUNT(*) FROM river WHERE river_name='colorado'"),
    ("greater or equal",
     "SELECT COUNT(*) FROM city WHERE population > 150000",
     "SELECT COUNT(*) FROM city WHERE population >= 150000"),
    ("constant country",
     "SELECT COUNT(*) FROM city WHERE country_name='usa'",
     "SELECT COUNT(*) FROM city"),
]  # fmt: skip

# A gold query, and a right answer that is another query.
RIGHT = [
    ("SELECT capital FROM state WHERE state_name = 'texas'",
     "SELECT s.capital FROM state AS s WHERE lower(s.state_name) = 'texas'"),
    ("SELECT COUNT(*) FROM state",
     "SELECT COUNT(state_name) FROM state"),
    ("SELECT city_name FROM city WHERE population = (SELECT MAX(population) FROM city WHERE "
     "state_name = 'arizona') AND state_name = 'arizona'",
     "WITH a AS (SELECT * FROM city WHERE state_name = 'arizona') SELECT city_name FROM a "
     "WHERE population >= (SELECT MAX(population) FROM a)"),
    ("SELECT city_name FROM city WHERE state_name = 'texas' AND population > 150000",
     "SELECT city_name FROM city WHERE NOT population <= 150000 AND state_name IN ('texas')"),
    ("SELECT state_name FROM state WHERE area = (SELECT MAX(area) FROM state)",
     "SELECT state_name FROM state WHERE NOT EXISTS (SELECT 1 FROM state AS o WHERE o.area > "
     "state.area)"),
    ("SELECT border FROM border_info WHERE state_name = 'utah'",
     "SELECT b.border FROM border_info b WHERE b.state_name LIKE 'utah'"),
    ("SELECT DISTINCT traverse FROM river WHERE river_name = 'colorado'",
     "SELECT traverse FROM river WHERE river_name = 'colorado' GROUP BY traverse"),
    ("SELECT state_name FROM state WHERE state_name NOT IN (SELECT border FROM border_info "
     "WHERE border IS NOT NULL)",
     "SELECT s.state_name FROM state s LEFT JOIN (SELECT DISTINCT border FROM border_info) b "
     "ON b.border = s.state_name WHERE b.border IS NULL"),
    ("SELECT SUM(population) FROM state WHERE state_name IN (SELECT border FROM border_info "
     "WHERE state_name = 'texas')",
     "SELECT SUM(s.population) FROM state s WHERE EXISTS (SELECT * FROM border_info b WHERE "
     "b.state_name = 'texas' AND b.border = s.state_name)"),
    ("SELECT river_name FROM river WHERE length > 750 AND traverse = 'texas'",
     "SELECT river_name FROM (SELECT * FROM river WHERE traverse = 'texas') WHERE length > "
     "750"),
    ("SELECT AVG(population) FROM state",
     "SELECT SUM(population) * 1.0 / COUNT(population) FROM state"),
    ("SELECT state_name FROM city GROUP BY state_name HAVING COUNT(*) > 10",
     "SELECT state_name FROM (SELECT state_name, COUNT(*) AS n FROM city GROUP BY "
     "state_name) WHERE n >= 11"),
    ("SELECT mountain_name FROM mountain ORDER BY mountain_altitude DESC LIMIT 1",
     "SELECT mountain_name FROM mountain ORDER BY -mountain_altitude LIMIT 1"),
    ("SELECT population FROM city WHERE city_name = 'boulder' AND state_name = 'colorado'",
     "SELECT population FROM city WHERE (city_name, state_name) = ('boulder', 'colorado')"),
    ("SELECT highest_point FROM highlow WHERE state_name IN (SELECT state_name FROM state "
     "WHERE capital = 'austin')",
     "SELECT h.highest_point FROM highlow h WHERE h.state_name = (SELECT state_name FROM "
     "state WHERE capital = 'austin')"),
    ("SELECT lake_name FROM lake WHERE area > 750 AND state_name = 'michigan'",
     "SELECT lake_name FROM lake WHERE state_name = 'michigan' AND area BETWEEN 750.0000001 "
     "AND 1e9"),
    ("SELECT COUNT(DISTINCT river_name) FROM river WHERE traverse = 'ohio'",
     "SELECT COUNT(*) FROM (SELECT DISTINCT river_name FROM river WHERE traverse = 'ohio')"),
    ("SELECT state_name FROM state WHERE density > 100 ORDER BY density",
     "SELECT state_name FROM state WHERE density > 100 ORDER BY density ASC"),
    ("SELECT MAX(population) FROM city",
     "SELECT population FROM city ORDER BY population DESC LIMIT 1"),
    ("SELECT city_name FROM city WHERE city_name IN (SELECT capital FROM state)",
     "SELECT c.city_name FROM city c WHERE EXISTS (SELECT 1 FROM state s WHERE s.capital = "
     "c.city_name)"),
]  # fmt: skip
